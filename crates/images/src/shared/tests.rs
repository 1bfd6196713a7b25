//! Registrations, removals and readers of several nodes, in every order of their steps.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, PutMultipartOptions, PutOptions, PutResult,
    RenameOptions, Result as Answer,
};

use super::*;

type Step = BoxFuture<'static, ()>;

/// Has others do something before the requests of one, and before what he asks the database.
#[derive(Default)]
struct Points {
    passed: AtomicUsize,
    script: Mutex<Vec<(usize, Step)>>,
}

impl Points {
    fn new(script: Vec<(usize, Step)>) -> Arc<Self> {
        Arc::new(Self {
            passed: AtomicUsize::new(0),
            script: Mutex::new(script),
        })
    }

    /// Does what is due at this point, in the order of the script.
    async fn pass(&self) {
        let point = self.passed.fetch_add(1, Ordering::SeqCst);
        self.do_until(point).await;
    }

    async fn do_until(&self, point: usize) {
        let due: Vec<_> = {
            let mut script = self.script.lock().unwrap_or_else(PoisonError::into_inner);
            let count = script.iter().take_while(|(at, _)| *at <= point).count();
            script.drain(..count).collect()
        };
        for (_, step) in due {
            step.await;
        }
    }
}

struct Stopping {
    inner: Arc<dyn ObjectStore>,
    points: Arc<Points>,
}

impl fmt::Debug for Stopping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stopping")
    }
}

impl fmt::Display for Stopping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store that stops")
    }
}

#[async_trait]
impl ObjectStore for Stopping {
    async fn put_opts(
        &self,
        to: &Location,
        payload: PutPayload,
        options: PutOptions,
    ) -> Answer<PutResult> {
        self.points.pass().await;
        self.inner.put_opts(to, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        to: &Location,
        options: PutMultipartOptions,
    ) -> Answer<Box<dyn MultipartUpload>> {
        self.points.pass().await;
        self.inner.put_multipart_opts(to, options).await
    }

    async fn get_opts(&self, from: &Location, options: GetOptions) -> Answer<GetResult> {
        self.points.pass().await;
        self.inner.get_opts(from, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Answer<Location>>,
    ) -> BoxStream<'static, Answer<Location>> {
        let points = Arc::clone(&self.points);
        let stopping = locations.then(move |location| {
            let points = Arc::clone(&points);
            async move {
                points.pass().await;
                location
            }
        });
        self.inner.delete_stream(stopping.boxed())
    }

    fn list(&self, prefix: Option<&Location>) -> BoxStream<'static, Answer<ObjectMeta>> {
        let (points, inner, prefix) = (
            Arc::clone(&self.points),
            Arc::clone(&self.inner),
            prefix.cloned(),
        );
        let listed = async move {
            points.pass().await;
            inner.list(prefix.as_ref())
        };
        stream::once(listed).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Location>) -> Answer<ListResult> {
        self.points.pass().await;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Location, to: &Location, options: CopyOptions) -> Answer<()> {
        self.points.pass().await;
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(
        &self,
        from: &Location,
        to: &Location,
        options: RenameOptions,
    ) -> Answer<()> {
        self.points.pass().await;
        self.inner.rename_opts(from, to, options).await
    }
}

const CONTENT: &[u8] = b"#!/bin/sh\necho hello\n";
/// More than a removal has requests, with its question.
const POINTS: usize = 8;

/// One content, its row, and the nodes that have to do with it.
struct World {
    objects: Arc<dyn ObjectStore>,
    renames: bool,
    row: Arc<AtomicBool>,
    pin: Arc<Mutex<Option<SharedPin>>>,
    local: Arc<tempfile::NamedTempFile>,
    _directory: Option<tempfile::TempDir>,
}

impl World {
    async fn new(renames: bool) -> Self {
        let directory = renames.then(|| tempfile::tempdir().unwrap());
        let objects: Arc<dyn ObjectStore> = match &directory {
            Some(directory) => {
                Arc::new(LocalFileSystem::new_with_prefix(directory.path()).unwrap())
            }
            None => Arc::new(InMemory::new()),
        };
        let local = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(local.path(), CONTENT).unwrap();
        let world = Self {
            objects,
            renames,
            row: Arc::default(),
            pin: Arc::default(),
            local: Arc::new(local),
            _directory: directory,
        };
        let local = (world.local.path(), CONTENT.len() as u64);
        assert!(world.node().ensure(&digest(), Some(local)).await.unwrap());
        world
    }

    fn node(&self) -> SharedStore {
        let mut node = SharedStore::of(Arc::clone(&self.objects), "a node");
        node.renames = self.renames;
        node
    }

    /// The steps of a registration on one node: pin, content, row, pin away.
    fn registration(&self) -> [Step; 4] {
        let (node, local) = (self.node(), Arc::clone(&self.local));
        let (pinning, unpinning, row) = (
            Arc::clone(&self.pin),
            Arc::clone(&self.pin),
            Arc::clone(&self.row),
        );
        let pinner = node.clone();
        [
            Box::pin(async move {
                let pin = pinner.pin(&digest()).await.unwrap();
                *pinning.lock().unwrap() = Some(pin);
            }),
            Box::pin(async move {
                let local = Some((local.path(), CONTENT.len() as u64));
                assert!(node.ensure(&digest(), local).await.unwrap());
            }),
            Box::pin(async move { row.store(true, Ordering::SeqCst) }),
            Box::pin(async move {
                // As a drop does, which leaves it to a task.
                let taken = unpinning.lock().unwrap().take();
                let mut pin = taken.expect("it was put");
                let (store, name) = pin.0.take().unwrap();
                store.delete(&name).await.unwrap();
            }),
        ]
    }

    /// A removal on one node, with what others do at its points.
    fn removal(&self, points: Arc<Points>) -> BoxFuture<'static, Deletion> {
        let mut node = self.node();
        node.objects = Arc::new(Stopping {
            inner: Arc::clone(&self.objects),
            points: Arc::clone(&points),
        });
        let row = Arc::clone(&self.row);
        Box::pin(async move {
            let is_needed = || async {
                points.pass().await;
                Ok::<_, BlobError>(row.load(Ordering::SeqCst))
            };
            let deletion = node.remove(&digest(), is_needed).await.unwrap();
            points.do_until(usize::MAX).await;
            deletion
        })
    }

    /// What a reader does that lacks the content.
    async fn is_found(&self) -> bool {
        let node = self.node();
        node.size(&digest()).await.unwrap().is_some() || node.take_back(&digest()).await.unwrap()
    }
}

fn digest() -> ImageDigest {
    ImageDigest::of(CONTENT)
}

/// All ways to spread four steps, in their order, over points.
fn spread() -> impl Iterator<Item = [usize; 4]> {
    (0..POINTS).flat_map(|a| {
        (a..POINTS).flat_map(move |b| {
            (b..POINTS).flat_map(move |c| (c..POINTS).map(move |d| [a, b, c, d]))
        })
    })
}

#[tokio::test]
async fn content_that_is_registered_anew_is_there_whenever_it_is_removed() {
    for renames in [false, true] {
        let (mut kept, mut put_again) = (0, 0);
        for at in spread() {
            let world = World::new(renames).await;
            let points = Points::new(at.into_iter().zip(world.registration()).collect());
            let deletion = world.removal(points).await;
            assert!(
                world.is_found().await,
                "renames {renames}, steps at {at:?}: {deletion:?}"
            );
            let left = world.node().names(&Location::from(REMOVED)).await.unwrap();
            assert!(
                left.is_empty(),
                "renames {renames}, steps at {at:?}: {left:?}"
            );
            match deletion {
                Deletion::Removed => put_again += 1,
                _ => kept += 1,
            }
        }
        assert!(
            kept > 0 && put_again > 0,
            "both were met: {kept}, {put_again}"
        );
    }
}

#[tokio::test]
async fn two_who_remove_at_once_lose_nothing_that_is_registered_meanwhile() {
    for at in spread() {
        for second in 0..POINTS {
            let world = World::new(false).await;
            let other = world.removal(Points::new(Vec::new()));
            let other: Step = Box::pin(async move {
                let _whatever_it_was = other.await;
            });
            let mut script: Vec<_> = at.into_iter().zip(world.registration()).collect();
            let place = script.iter().take_while(|(at, _)| *at < second).count();
            script.insert(place, (second, other));
            world.removal(Points::new(script)).await;
            assert!(
                world.is_found().await,
                "steps at {at:?}, the other removal at {second}"
            );
        }
    }
}

#[tokio::test]
async fn a_reader_finds_content_with_a_row_at_every_point_of_two_removals() {
    for renames in [false, true] {
        for first in 0..POINTS {
            for second in 0..POINTS {
                let world = Arc::new(World::new(renames).await);
                world.row.store(true, Ordering::SeqCst);
                let read = |name: &'static str| -> Step {
                    let world = Arc::clone(&world);
                    Box::pin(async move {
                        assert!(
                            world.is_found().await,
                            "{name} at {first}, {second}, renames {renames}"
                        );
                    })
                };
                let other = world.removal(Points::new(vec![(second, read("within the other"))]));
                let other: Step = Box::pin(async move {
                    let _whatever_it_was = other.await;
                });
                let script = vec![
                    (first, read("before")),
                    (first, other),
                    (first, read("after")),
                ];
                world.removal(Points::new(script)).await;
                assert!(
                    world.is_found().await,
                    "{first}, {second}, renames {renames}"
                );
            }
        }
    }
}

#[tokio::test]
async fn what_a_dead_remover_has_left_is_found_and_swept() {
    let world = World::new(true).await;
    let node = world.node();
    let aside = Location::from_iter([REMOVED, &digest().to_hex(), "dead"]);
    let size = CONTENT.len() as u64;
    assert!(
        node.rename(&location(&digest()), &aside, size)
            .await
            .unwrap()
    );
    let needed = |_| async { Ok::<_, BlobError>(true) };
    let nothing = Swept::default();
    assert_eq!(node.sweep_removed(false, needed).await.unwrap(), nothing);
    assert_eq!(node.size(&digest()).await.unwrap(), Some(size));
    assert!(
        node.rename(&location(&digest()), &aside, size)
            .await
            .unwrap()
    );
    let unneeded = |_| async { Ok::<_, BlobError>(false) };
    let swept = Swept {
        items: 1,
        bytes: size,
    };
    for dry_run in [true, false] {
        assert_eq!(node.sweep_removed(dry_run, unneeded).await.unwrap(), swept);
    }
    assert_eq!(node.sweep_removed(false, unneeded).await.unwrap(), nothing);
    assert!(!world.is_found().await);
}

#[tokio::test]
async fn where_copies_are_made_what_is_new_is_left_to_its_remover() {
    let world = World::new(false).await;
    let node = world.node();
    let aside = Location::from_iter([REMOVED, &digest().to_hex(), "alive"]);
    assert!(node.copy(&location(&digest()), &aside, 1).await.unwrap());
    let unneeded = |_| async { Ok::<_, BlobError>(false) };
    let swept = node.sweep_removed(false, unneeded).await.unwrap();
    assert_eq!(swept, Swept::default());
    let listed = node.list(None, 10).await.unwrap();
    let old: Vec<_> = listed.iter().map(|it| (it.digest, it.is_old)).collect();
    assert_eq!(
        old,
        [(digest(), false)],
        "nor is content taken for an orphan that was just put"
    );
}

#[tokio::test]
async fn a_question_that_fails_leaves_the_content_where_it_is_found() {
    let world = World::new(false).await;
    let is_needed = || async { Err::<bool, _>(BlobError::Stopping) };
    let failed = world.node().remove(&digest(), is_needed).await;
    assert!(matches!(failed, Err(BlobError::Stopping)));
    assert_eq!(
        world.node().size(&digest()).await.unwrap(),
        Some(CONTENT.len() as u64)
    );
}

#[test]
fn no_content_has_too_many_pieces() {
    for size in [1, PIECE_BYTES + 1, 5 << 30, 1 << 40, 5 << 40] {
        let length = piece_length(size);
        assert!(
            size.div_ceil(length) <= PIECES && length >= PIECE_BYTES,
            "{size}"
        );
    }
}
