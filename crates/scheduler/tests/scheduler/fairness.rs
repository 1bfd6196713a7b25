//! A tenant with many due instances does not keep the others waiting, also where all room is taken.

use std::time::Duration;

use runtara_domain::ExitCause;
use tokio::time::sleep;

use crate::soon;
use crate::world::World;

/// A little longer than the dispatcher waits between two claims for those who were not served.
const BETWEEN_TURNS: Duration = Duration::from_millis(300);

impl World {
    async fn start_many(&self, tenant: &str, count: usize) {
        for number in 0..count {
            self.start_for(tenant, &format!("{tenant}-{number}")).await;
        }
    }

    /// Waits for the so-manyeth launch and says whose it is.
    async fn tenant_of_launch(&self, count: usize) -> String {
        let id = self.runner.launched(count).await.instance_id;
        let state = self.instance(&id).await.state;
        state.tenant_id.to_string()
    }

    async fn end_launch(&self, count: usize) {
        let key = self.runner.launched(count).await;
        let run = self.runner.run(&key).expect("it runs");
        run.ends(ExitCause::Code(0));
    }
}

#[tokio::test]
async fn another_tenant_comes_next_where_there_is_room_for_one() {
    let world = World::new().await;
    world.start_many("greedy", 20).await;
    world.start_many("small", 1).await;
    let scheduler = world.scheduler(1);
    assert_eq!(world.tenant_of_launch(1).await, "greedy");
    world.end_launch(1).await;
    assert_eq!(world.tenant_of_launch(2).await, "small");
    world.end_launch(2).await;
    assert_eq!(
        world.tenant_of_launch(3).await,
        "greedy",
        "nobody else has anything due"
    );
    scheduler.end_runs();
    scheduler.shutdown(soon()).await;
}

#[tokio::test]
async fn two_greedy_tenants_do_not_keep_out_a_third() {
    let world = World::new().await;
    for number in 0..20 {
        world.start_for("greedy", &format!("greedy-{number}")).await;
        world.start_for("grabby", &format!("grabby-{number}")).await;
    }
    world.start_many("small", 1).await;
    let scheduler = world.scheduler(4);
    for launch in 1..=4 {
        assert_ne!(world.tenant_of_launch(launch).await, "small");
    }
    // Those that are due at the same moment come in any order: the first four may all be of one of the two, and the other comes next.
    let mut next = Vec::new();
    for launch in 1..=2 {
        world.end_launch(launch).await;
        next.push(world.tenant_of_launch(4 + launch).await);
        sleep(BETWEEN_TURNS).await;
    }
    assert!(next.contains(&"small".to_owned()), "{next:?}");
    scheduler.end_runs();
    scheduler.shutdown(soon()).await;
}

#[tokio::test]
async fn everybody_has_a_turn_before_anybody_has_a_second_one() {
    let world = World::new().await;
    world.start_many("first", 20).await;
    world.start_many("second", 20).await;
    world.start_many("third", 20).await;
    let scheduler = world.scheduler(1);
    let mut turns = Vec::new();
    for launch in 1..=6 {
        turns.push(world.tenant_of_launch(launch).await);
        sleep(BETWEEN_TURNS).await;
        world.end_launch(launch).await;
    }
    for round in turns.chunks(3) {
        let mut round = round.to_vec();
        round.sort();
        assert_eq!(round, ["first", "second", "third"], "{turns:?}");
    }
    scheduler.end_runs();
    scheduler.shutdown(soon()).await;
}
