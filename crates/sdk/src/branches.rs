//! Branches: parts of a program that run side by side.

use std::future::Future;
use std::pin::Pin;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use crate::Error;
use crate::instance::Instance;

type Branch<'a, T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'a>>;

/// Branches of one instance, from [`Instance::branches`].
///
/// While one branch is busy, the waits of the others keep the process; while all of them wait, it may be ended as in a
/// program without branches, and is started again when the first of them is to go on. That is why side by side means
/// branches, and not tasks of one's own: of those the instance knows nothing.
///
/// Names are those of the whole instance, so let branches use different ones.
#[must_use = "branches do nothing before they are finished"]
pub struct Branches<'a, T, E = Error> {
    instance: Instance,
    branches: Vec<Branch<'a, T, E>>,
}

impl Instance {
    /// Runs parts of the program side by side.
    ///
    /// ```no_run
    /// # async fn example(instance: &runtara_sdk::Instance) -> Result<(), runtara_sdk::Error> {
    /// use std::time::Duration;
    ///
    /// let mut branches = instance.branches();
    /// for city in ["Oslo", "Lima"] {
    ///     branches.add(async move {
    ///         instance.sleep(&format!("{city}: dawn"), Duration::from_secs(3600)).await?;
    ///         instance.checkpoint(&format!("{city}: weather"), || async { format!("fine in {city}") }).await
    ///     });
    /// }
    /// let weather: Vec<String> = branches.finish().await?;
    /// # Ok(()) }
    /// ```
    pub fn branches<'a, T, E>(&self) -> Branches<'a, T, E> {
        Branches {
            instance: self.clone(),
            branches: Vec::new(),
        }
    }
}

impl<'a, T, E> Branches<'a, T, E> {
    /// Adds a branch. It does nothing before [`Branches::finish`].
    pub fn add(&mut self, branch: impl Future<Output = Result<T, E>> + Send + 'a) {
        self.branches.push(Box::pin(branch));
    }

    /// Runs all of them to their end and gives what they gave, in the order in which they were added.
    ///
    /// # Errors
    /// The first error of a branch; the others are dropped where they are, as by a crash. If the instance is cancelled or
    /// paused, every branch comes to the end of its step first.
    pub async fn finish(self) -> Result<Vec<T>, E>
    where
        E: From<Error>,
    {
        let instance = self.instance;
        let mut split = instance.work().split(self.branches.len());
        let mut results: Vec<Option<T>> = self.branches.iter().map(|_| None).collect();
        let mut running: FuturesUnordered<_> = (0..)
            .zip(self.branches)
            .map(|(index, branch)| async move { (index, branch.await) })
            .collect();
        let mut first_error = None;
        while let Some((index, result)) = running.next().await {
            split.ended();
            let slot: &mut Option<T> = &mut results[index];
            match result {
                Ok(value) => *slot = Some(value),
                Err(error) => {
                    first_error.get_or_insert(error);
                    let leave = instance.leaving().reason();
                    if !leave.is_some_and(crate::leave::Leave::lets_steps_finish) {
                        break;
                    }
                }
            }
        }
        drop(running);
        drop(split);
        if !instance.work().is_split() {
            instance.acknowledge().await?;
        }
        match first_error {
            Some(error) => Err(error),
            None => Ok(results.into_iter().flatten().collect()),
        }
    }
}
