//! What is not needed any more goes, by itself and by hand.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use runtara_domain::{Caller, Change, ExitCause, Fence, InstanceId, Keep, NewEvent, Timestamp};
use runtara_scheduler::{
    Scheduler, UPKEEP_NAMES, UpkeepConfig, UpkeepEvent, UpkeepReport, UpkeepRequest,
};
use runtara_store::{EventFilter, ManualClock, PageRequest};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::soon;
use crate::world::World;

const DAY: i64 = 86_400_000;

/// Ends the run of an instance.
async fn end(world: &World, id: &InstanceId, code: i32) {
    let run = world.run_of(id).await;
    run.ends(ExitCause::Code(code));
    world
        .until(id, |found| found.state.live_node.is_none())
        .await;
}

fn files(world: &World, id: &InstanceId) -> PathBuf {
    world.directory.path().join("runs").join(id.letters())
}

async fn maintain(scheduler: &Scheduler, request: UpkeepRequest) -> Vec<UpkeepReport> {
    let (events, mut reports) = mpsc::channel(8);
    let done = scheduler.maintain(&request, &events);
    let listened = async {
        let mut all = Vec::new();
        while all.len() < request.only.len() {
            match reports.recv().await.expect("it ends with a report") {
                UpkeepEvent::Done(report) => all.push(report),
                UpkeepEvent::Progress { .. } => {}
            }
        }
        all
    };
    let (done, all) = timeout(Duration::from_secs(20), async {
        tokio::join!(done, listened)
    })
    .await
    .expect("it does not end");
    done.expect("the names are known");
    all
}

/// A scheduler that has done everything once by itself: what follows is not disturbed by that.
async fn settled(world: &World) -> Scheduler {
    let scheduler = world.scheduler(10);
    let settled = timeout(Duration::from_secs(20), async {
        while scheduler
            .upkeep_figures()
            .iter()
            .any(|(_, figures)| figures.runs == 0)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    settled.await.expect("it is not done by itself");
    scheduler
}

fn only(name: &str, dry_run: bool) -> UpkeepRequest {
    UpkeepRequest {
        dry_run,
        only: vec![name.to_owned()],
        names: 2,
    }
}

#[tokio::test]
async fn ended_instances_go_when_their_time_is_over_and_a_dry_run_only_says_so() {
    let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
    let world = World::at(Arc::clone(&clock) as _).await;
    *world.upkeep.lock().unwrap() = UpkeepConfig {
        retention: "10d, failed=20d, @kept=forever".parse().unwrap(),
        ..UpkeepConfig::default()
    };
    let first = settled(&world).await;
    let (completed, failed, kept) = (
        world.start("completed").await,
        world.start("failed").await,
        world.start_for("kept", "kept").await,
    );
    world.runner.launched(3).await;
    for (id, code) in [(&completed, 0), (&failed, 3), (&kept, 0)] {
        end(&world, id, code).await;
    }
    clock.advance_millis(11 * DAY as u64);
    let dry = maintain(&first, only("instances", true)).await;
    assert_eq!((dry[0].items, dry[0].stopped), (1, false));
    assert_eq!(dry[0].names, ["completed of t, completed"]);
    assert!(world.store.instance(&completed).await.unwrap().is_some());
    let figures = |scheduler: &Scheduler, name: &str| {
        let all = scheduler.upkeep_figures();
        all.into_iter().find(|(of, _)| *of == name).unwrap().1
    };
    assert_eq!(figures(&first, "instances").items, 0);

    let done = maintain(&first, only("instances", false)).await;
    assert_eq!((done[0].items, &done[0].error), (1, &None));
    assert_eq!(world.store.instance(&completed).await.unwrap(), None);
    assert!(world.store.instance(&failed).await.unwrap().is_some());
    assert_eq!(figures(&first, "instances").items, 1);
    assert!(figures(&first, "instances").runs >= 1);
    // Its files go with it.
    let dry = maintain(&first, only("run-files", true)).await;
    assert_eq!(dry[0].names, ["all runs of completed"]);
    assert!(files(&world, &completed).exists());
    maintain(&first, only("run-files", false)).await;
    assert!(!files(&world, &completed).exists());
    assert!(files(&world, &failed).exists());
    first.shutdown(soon()).await;

    // The next does the same by itself.
    clock.advance_millis(10 * DAY as u64);
    let second = world.scheduler(10);
    let gone = timeout(Duration::from_secs(10), async {
        while world.store.instance(&failed).await.unwrap().is_some() {
            tokio::task::yield_now().await;
        }
    });
    gone.await.expect("the failed instance is still there");
    assert!(world.store.instance(&kept).await.unwrap().is_some());
    second.shutdown(soon()).await;
}

#[tokio::test]
async fn many_instances_go_in_batches_and_a_running_one_stays() {
    let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
    let world = World::at(Arc::clone(&clock) as _).await;
    for n in 0..130 {
        let id = world.start(&format!("i-{n}")).await;
        let change = Change::Cancel { payload: None };
        world.store.change(&id, change).await.unwrap();
    }
    let scheduler = settled(&world).await;
    let running = world.start("running").await;
    world.runner.launched(1).await;
    clock.advance_millis(31 * DAY as u64);
    let done = maintain(&scheduler, only("instances", false)).await;
    assert_eq!(done[0].items, 130);
    assert_eq!(done[0].names.len(), 2);
    assert!(world.store.instance(&running).await.unwrap().is_some());
    scheduler.end_runs();
    scheduler.shutdown(soon()).await;
}

#[tokio::test]
async fn logs_go_by_age_and_by_size_and_those_of_live_runs_never() {
    let world = World::new().await;
    *world.upkeep.lock().unwrap() = UpkeepConfig {
        logs_max_age: Keep::For(3_600_000),
        logs_max_bytes: Some(250),
        ..UpkeepConfig::default()
    };
    let scheduler = settled(&world).await;
    let mut ids = Vec::new();
    for id in ["old", "second", "third", "fourth", "lives"] {
        ids.push(world.start(id).await);
    }
    world.runner.launched(5).await;
    for id in &ids[..4] {
        end(&world, id, 0).await;
    }
    for (id, age) in ids.iter().zip([7_200, 500, 400, 300, 9_000]) {
        let run = files(&world, id).join("1");
        std::fs::create_dir_all(&run).unwrap();
        std::fs::write(files(&world, id).join("instance"), id.as_str()).unwrap();
        let path = run.join("stdout.0");
        std::fs::write(&path, [b'x'; 100]).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age))
            .unwrap();
    }
    std::fs::write(files(&world, &ids[4]).join("1/run.json"), "{}").unwrap();
    let is_there = |id: &InstanceId| files(&world, id).join("1/stdout.0").exists();
    let dry = maintain(&scheduler, only("logs", true)).await;
    // One is too old, one more is too much.
    assert_eq!((dry[0].items, dry[0].bytes), (2, 200));
    assert_eq!(dry[0].names, ["run 1 of old", "run 1 of second"]);
    assert!(ids.iter().all(is_there));
    let done = maintain(&scheduler, only("logs", false)).await;
    assert_eq!((done[0].items, done[0].bytes), (2, 200));
    let left: Vec<_> = ids.iter().map(is_there).collect();
    assert_eq!(left, [false, false, true, true, true]);
    let again = maintain(&scheduler, only("logs", false)).await;
    assert_eq!(again[0].items, 0);
    scheduler.end_runs();
    scheduler.shutdown(soon()).await;
}

#[tokio::test]
async fn unused_images_are_counted_once() {
    let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
    let world = World::at(Arc::clone(&clock) as _).await;
    *world.upkeep.lock().unwrap() = UpkeepConfig {
        images_unused: Keep::For(3_600_000),
        ..UpkeepConfig::default()
    };
    let scheduler = settled(&world).await;
    let (unused, used) = (world.image_id("unused").await, world.image_id("used").await);
    clock.advance_millis(7_200_000);
    let id = world.start_for("used", "uses-it").await;
    world.runner.launched(1).await;
    let expected = (1, vec![format!("image of unused, {unused}")], false);
    for dry_run in [true, false] {
        let report = maintain(&scheduler, only("images", dry_run))
            .await
            .remove(0);
        assert_eq!(
            (report.items, report.names, report.stopped),
            expected,
            "dry run: {dry_run}"
        );
    }
    assert_eq!(world.store.image_even_deleted(&unused).await.unwrap(), None);
    assert!(world.store.image(&used).await.unwrap().is_some());
    let figures = scheduler.upkeep_figures();
    let images = figures.iter().find(|(name, _)| *name == "images").unwrap();
    assert_eq!(images.1.items, 1);
    // What is done is not told again when all is gone that knows of it.
    end(&world, &id, 0).await;
    clock.advance_millis(7_200_000);
    let done = maintain(&scheduler, only("images", false)).await;
    assert_eq!((done[0].items, done[0].bytes), (1, 0));
    assert_eq!(done[0].names, [format!("image of used, {used}")]);
    let again = maintain(&scheduler, only("images", false)).await;
    assert_eq!(again[0].items, 0);
    scheduler.shutdown(soon()).await;
}

#[tokio::test]
async fn content_without_an_image_is_counted_and_goes() {
    let world = World::new().await;
    let scheduler = settled(&world).await;
    world.start("uses-the-image").await;
    world.runner.launched(1).await;
    let mut upload = world.blobs.upload().await.unwrap();
    upload.write(b"nobody's").await.unwrap();
    let orphan = upload.finish(None).await.unwrap();
    let digest = orphan.digest;
    drop(orphan);
    // Of a server that was killed.
    let broken = world.directory.path().join("blobs/uploads/broken.part");
    std::fs::write(&broken, "half of it").unwrap();
    let dry = maintain(&scheduler, only("contents", true)).await;
    assert_eq!((dry[0].items, dry[0].bytes), (2, 18));
    let names = [
        "what broken uploads have left".to_owned(),
        digest.to_string(),
    ];
    assert_eq!(dry[0].names, names);
    assert!(broken.exists() && world.blobs.exists(&digest).await.unwrap());
    let done = maintain(&scheduler, only("contents", false)).await;
    assert_eq!((done[0].items, done[0].bytes), (2, 18));
    assert!(!broken.exists() && !world.blobs.exists(&digest).await.unwrap());
    scheduler.end_runs();
    scheduler.shutdown(soon()).await;
}

#[tokio::test]
async fn what_is_left_of_nobody_known_goes_too() {
    let world = World::new().await;
    *world.upkeep.lock().unwrap() = UpkeepConfig {
        logs_max_age: Keep::For(3_600_000),
        ..UpkeepConfig::default()
    };
    let scheduler = settled(&world).await;
    // As a machine that lost its power may leave it: the name of the file that says whose it is, without its content.
    let runs = world.directory.path().join("runs");
    let (with_logs, empty) = (runs.join("with-logs"), runs.join("empty"));
    std::fs::create_dir_all(with_logs.join("3")).unwrap();
    std::fs::create_dir_all(&empty).unwrap();
    std::fs::write(with_logs.join("instance"), "").unwrap();
    let log = with_logs.join("3/stdout.0");
    std::fs::write(&log, "last words").unwrap();
    let done = maintain(&scheduler, only("run-files", false)).await;
    assert_eq!(done[0].items, 1, "{done:?}");
    assert!(log.exists() && !empty.exists());
    let file = std::fs::File::options().write(true).open(&log).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(7_200))
        .unwrap();
    let done = maintain(&scheduler, only("logs", false)).await;
    assert_eq!((done[0].items, done[0].bytes), (1, 10), "{done:?}");
    let done = maintain(&scheduler, only("run-files", false)).await;
    assert_eq!(done[0].items, 1, "{done:?}");
    assert!(!with_logs.exists());
    scheduler.shutdown(soon()).await;
}

#[tokio::test]
async fn an_unknown_name_is_refused_with_those_that_are_known() {
    let world = World::new().await;
    let scheduler = world.scheduler(10);
    let (events, _reports) = mpsc::channel(1);
    let refused = scheduler.maintain(&only("everything", true), &events).await;
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("everything"), "{text}");
    assert!(
        UPKEEP_NAMES.iter().all(|name| text.contains(name)),
        "{text}"
    );
    scheduler.shutdown(soon()).await;
}

/// Has the run of an instance report so often.
async fn report(world: &World, id: &InstanceId, events: usize) {
    let live = world.store.live_run(id).await.unwrap().unwrap();
    let caller = Caller {
        instance_id: id.clone(),
        fence: Fence::Run(live.token),
    };
    for _ in 0..events {
        let event = NewEvent::custom(Some("progress".to_owned()), None, None);
        world
            .store
            .record_event(&caller, event, None)
            .await
            .unwrap();
    }
}

async fn events(world: &World, id: &InstanceId) -> u64 {
    let (any, page) = (EventFilter::default(), PageRequest::first(1));
    let found = world.store.list_events(id, &any, &page).await.unwrap();
    found.total.count
}

#[tokio::test]
async fn events_of_long_instances_are_folded_while_they_run_and_by_hand_after() {
    let world = World::new().await;
    let unbounded = world.start("unbounded").await;
    *world.max_events.lock().unwrap() = Some(100);
    let bounded = world.start("bounded").await;
    let first = settled(&world).await;
    world.runner.launched(2).await;
    for id in [&unbounded, &bounded] {
        report(&world, id, 300).await;
    }
    let dry = maintain(&first, only("events", true)).await;
    assert_eq!(dry[0].names, ["oldest events of bounded"]);
    assert_eq!(events(&world, &bounded).await, 300);
    first.shutdown(soon()).await;

    // The next one finds the runs again, and does it by itself.
    let second = world.scheduler(10);
    let folded = timeout(Duration::from_secs(10), async {
        while events(&world, &bounded).await > 100 {
            tokio::task::yield_now().await;
        }
    });
    folded.await.expect("they are not folded");
    assert_eq!(events(&world, &unbounded).await, 300);
    report(&world, &bounded, 300).await;
    end(&world, &bounded, 0).await;
    let done = maintain(&second, only("events", false)).await;
    assert!(done[0].items > 200, "{done:?}");
    assert!(events(&world, &bounded).await <= 100);
    second.end_runs();
    second.shutdown(soon()).await;
}
