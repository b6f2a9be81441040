//! Batches from a data set: decoding and augmentation in parallel, ahead of the consumer, in an order that depends
//! on the seed only.
//!
//! Threads take samples one after the other from the epoch's order and put the results where they belong, so
//! neither the batches nor their order depend on the number of threads. At most `prefetch` batches are held. Each
//! sample draws from `Stream::new(seed, Purpose::AUGMENT, epoch, index)`, so a loader can start at any [`Position`]
//! and continues as if it had run from the beginning.
//!
//! A sample that cannot be read is counted and named ([`Loader::failures`]) and then treated as [`Unreadable`] says.

mod batch;

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use batch::Batch;
use batch::{Made, Sample, assemble};

use super::folder::Source;
use super::image::Image;
use super::rng::{Purpose, Stream};
use crate::{Error, Result};

/// What happens to a sample that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// The next readable sample in the epoch's order takes its place (the first one after the last). The place
    /// keeps its random stream, so the substitute is cropped differently from its own appearance.
    Replace,
    /// It is left out; its batch is smaller. For evaluation, where nothing may count twice.
    Omit,
    /// The loader stops with the error.
    Fail,
}

/// How many samples [`Unreadable::Replace`] tries for one place before it gives up: by then it is not the files.
const MAX_SUBSTITUTES: usize = 100;

/// A place in the sequence of batches: plain numbers, so it can be saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Batch inside the epoch, from 0.
    pub step: u64,
}

/// How a loader runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Samples in a batch (of this rank).
    pub batch: usize,
    /// Decides order and augmentation.
    pub seed: u64,
    /// A new order in every epoch; else the order of the data set.
    pub shuffle: bool,
    /// Whether the samples that do not fill a batch at the end of an epoch are left out.
    pub drop_last: bool,
    /// Number of the last epoch plus one; `None` to go on for ever.
    pub epochs: Option<u64>,
    /// First batch.
    pub start: Position,
    /// Threads; 0 for as many as rayon's pool has.
    pub threads: usize,
    /// Batches held ready or in work, at least 1.
    pub prefetch: usize,
    /// What happens to samples that cannot be read.
    pub unreadable: Unreadable,
    /// This process's number among `ranks`; batch s of the whole run is made of one batch of each rank.
    pub rank: usize,
    /// Processes that share the data set, at least 1.
    pub ranks: usize,
}

impl Options {
    /// For training: shuffled, without end, full batches only.
    pub fn training(batch: usize, seed: u64) -> Self {
        Self {
            batch,
            seed,
            shuffle: true,
            drop_last: true,
            epochs: None,
            start: Position::default(),
            threads: 0,
            prefetch: 3,
            unreadable: Unreadable::Replace,
            rank: 0,
            ranks: 1,
        }
    }

    /// For evaluation: every sample once, in order.
    pub fn evaluation(batch: usize) -> Self {
        Self {
            shuffle: false,
            drop_last: false,
            epochs: Some(1),
            unreadable: Unreadable::Omit,
            ..Self::training(batch, 0)
        }
    }
}

/// What the consumer spent waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Batches handed out.
    pub batches: u64,
    /// Time spent in `next` for the last batch.
    pub last_wait: Duration,
    /// Time spent in `next` for all of them.
    pub total_wait: Duration,
}

/// Iterator over batches; see the module documentation. Dropping it stops and joins its threads.
pub struct Loader<T: Send + 'static> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
    position: Position,
    stats: Stats,
}

type Transform<T> = dyn Fn(&Image, &mut Stream) -> Result<Vec<T>> + Send + Sync;

struct Shared<T> {
    source: Arc<dyn Source>,
    transform: Box<Transform<T>>,
    options: Options,
    steps_per_epoch: u64,
    state: Mutex<State<T>>,
    /// A batch may be begun, or the threads are to stop.
    work: Condvar,
    /// The oldest batch may have become complete.
    ready: Condvar,
    failures: Mutex<BTreeMap<usize, String>>,
}

struct State<T> {
    /// Batch to be begun next, or being given out sample by sample.
    next: Position,
    /// Sample of `next` to be given out next.
    next_place: usize,
    /// Batches begun and not yet handed out, oldest first.
    begun: VecDeque<Begun<T>>,
    /// How many batches have left `begun`: number of its first one.
    handed_out: u64,
    order: Option<(u64, Arc<Vec<u32>>)>,
    stop: bool,
}

struct Begun<T> {
    at: Position,
    samples: Vec<Option<Result<Sample<T>>>>,
    missing: usize,
    complete: Option<Result<Batch<T>>>,
}

/// One sample to be made.
struct Ticket {
    batch: u64,
    place: usize,
    /// Where in the epoch's order it stands.
    slot: usize,
    epoch: u64,
    order: Arc<Vec<u32>>,
}

impl<T: Copy + Send + 'static> Loader<T> {
    /// Starts the threads. `transform` makes the values of one sample of its image and its random stream; all
    /// samples must have the same number of values.
    pub fn new(
        source: Arc<dyn Source>,
        transform: impl Fn(&Image, &mut Stream) -> Result<Vec<T>> + Send + Sync + 'static,
        mut options: Options,
    ) -> Result<Self> {
        let steps_per_epoch = check(source.as_ref(), &options)?;
        if options.start.step == steps_per_epoch {
            options.start = Position { epoch: options.start.epoch + 1, step: 0 };
        }
        if options.threads == 0 {
            options.threads = rayon::current_num_threads();
        }
        let (start, threads) = (options.start, options.threads);
        let state =
            State { next: start, next_place: 0, begun: VecDeque::new(), handed_out: 0, order: None, stop: false };
        let shared = Arc::new(Shared {
            source,
            transform: Box::new(transform),
            options,
            steps_per_epoch,
            state: Mutex::new(state),
            work: Condvar::new(),
            ready: Condvar::new(),
            failures: Mutex::new(BTreeMap::new()),
        });
        // From here on `Drop` joins what was started, also when a thread cannot be had.
        let mut loader = Self { shared, threads: Vec::new(), position: start, stats: Stats::default() };
        for number in 0..threads {
            let shared = loader.shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("loader {number}"))
                .spawn(move || shared.run())
                .map_err(|e| Error::Training(format!("loader: thread {number} of {threads} did not start: {e}")))?;
            loader.threads.push(thread);
        }
        Ok(loader)
    }

    /// Batches in an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.shared.steps_per_epoch
    }

    /// Where the next batch stands: what a checkpoint keeps and [`Options::start`] takes.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Time spent waiting for data.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The samples that could not be read so far, by file, with the cause.
    pub fn failures(&self) -> Vec<(PathBuf, String)> {
        let failures = locked(&self.shared.failures);
        failures.iter().map(|(&index, cause)| (self.shared.source.name(index), cause.clone())).collect()
    }
}

/// Batches per epoch of these options, or what is wrong with them.
fn check(source: &dyn Source, options: &Options) -> Result<u64> {
    let op = "loader";
    for (arg, given) in [("batch", options.batch), ("prefetch", options.prefetch), ("ranks", options.ranks)] {
        if given == 0 {
            return Err(Error::value(op, arg, given, "at least 1"));
        }
    }
    if options.rank >= options.ranks {
        return Err(Error::value(op, "rank", options.rank, format!("below {} (ranks)", options.ranks)));
    }
    let samples = source.len();
    let sizes = options.batch.checked_mul(options.ranks);
    let whole = sizes.ok_or_else(|| Error::value(op, "batch", options.batch, "batch x ranks below 2^64"))?;
    if samples == 0 || u32::try_from(samples).is_err() {
        return Err(Error::value(op, "source", format!("{samples} samples"), "1 to 2^32 - 1 samples"));
    }
    if options.drop_last && whole > samples {
        let given = if options.ranks == 1 {
            format!("{whole}")
        } else {
            format!("{} x {} ranks", options.batch, options.ranks)
        };
        return Err(Error::value(op, "batch", given, format!("at most the {samples} samples of the data set")));
    }
    let steps = if options.drop_last {
        samples / whole
    } else {
        samples.saturating_sub(options.rank * options.batch).div_ceil(whole)
    } as u64;
    if options.start.step > steps {
        let expected = format!("at most {steps}, the batches of an epoch");
        return Err(Error::value(op, "start.step", options.start.step, expected));
    }
    Ok(steps)
}

fn locked<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    // Nothing that can panic runs while a lock is held, so a poisoned lock still guards whole values.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Copy + Send> Iterator for Loader<T> {
    type Item = Result<Batch<T>>;

    fn next(&mut self) -> Option<Self::Item> {
        let started = Instant::now();
        let mut state = locked(&self.shared.state);
        let batch = loop {
            if state.stop {
                return None;
            }
            if let Some(batch) = state.begun.front_mut().and_then(|front| front.complete.take()) {
                break batch;
            }
            if state.begun.is_empty() && self.shared.ended(state.next) {
                return None;
            }
            state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        let at = state.begun.pop_front().map_or(self.position, |begun| begun.at);
        state.handed_out += 1;
        state.stop |= batch.is_err();
        drop(state);
        self.shared.work.notify_all();
        self.position = self.shared.after(at);
        self.stats.batches += 1;
        self.stats.last_wait = started.elapsed();
        self.stats.total_wait += self.stats.last_wait;
        Some(batch)
    }
}

impl<T: Send + 'static> Drop for Loader<T> {
    fn drop(&mut self) {
        locked(&self.shared.state).stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A worker catches panics of a sample; one outside would be a fault of the loop itself, already printed.
            let _ = thread.join();
        }
    }
}

impl<T> Shared<T> {
    fn ended(&self, at: Position) -> bool {
        self.steps_per_epoch == 0 || self.options.epochs.is_some_and(|epochs| at.epoch >= epochs)
    }

    fn after(&self, at: Position) -> Position {
        if at.step + 1 < self.steps_per_epoch {
            Position { step: at.step + 1, ..at }
        } else {
            Position { epoch: at.epoch + 1, step: 0 }
        }
    }

    /// First slot of a batch in the epoch's order, and its number of samples.
    fn extent(&self, step: u64) -> (usize, usize) {
        let first = (step as usize * self.options.ranks + self.options.rank) * self.options.batch;
        (first, self.options.batch.min(self.source.len() - first))
    }

    fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        let mut order: Vec<u32> = (0..self.source.len() as u32).collect();
        if self.options.shuffle {
            self.source.shuffle(&mut Stream::new(self.options.seed, Purpose::SHUFFLE, epoch, 0), &mut order);
        }
        Arc::new(order)
    }

    /// The next sample to be made, if there is room for it.
    fn ticket(&self, state: &mut State<T>) -> Option<Ticket> {
        if state.next_place == 0 {
            if state.begun.len() >= self.options.prefetch || self.ended(state.next) {
                return None;
            }
            if state.order.as_ref().is_none_or(|(epoch, _)| *epoch != state.next.epoch) {
                state.order = Some((state.next.epoch, self.order(state.next.epoch)));
            }
            let (_, len) = self.extent(state.next.step);
            let samples = (0..len).map(|_| None).collect();
            state.begun.push_back(Begun { at: state.next, samples, missing: len, complete: None });
        }
        let order = state.order.as_ref()?.1.clone();
        let (first, len) = self.extent(state.next.step);
        let ticket = Ticket {
            batch: state.handed_out + state.begun.len() as u64 - 1,
            place: state.next_place,
            slot: first + state.next_place,
            epoch: state.next.epoch,
            order,
        };
        state.next_place += 1;
        if state.next_place == len {
            state.next = self.after(state.next);
            state.next_place = 0;
        }
        Some(ticket)
    }
}

impl<T: Copy> Shared<T> {
    /// What each thread does.
    fn run(&self) {
        let mut state = locked(&self.state);
        while !state.stop {
            let Some(ticket) = self.ticket(&mut state) else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let sample = self.sample(&ticket);
            state = locked(&self.state);
            let Some(begun) = begun(&mut state, ticket.batch) else { continue };
            begun.samples[ticket.place] = Some(sample);
            begun.missing -= 1;
            if begun.missing > 0 {
                continue;
            }
            let (at, samples) = (begun.at, std::mem::take(&mut begun.samples));
            drop(state);
            let batch = assemble(at, samples);
            state = locked(&self.state);
            if let Some(begun) = self::begun(&mut state, ticket.batch) {
                begun.complete = Some(batch);
                self.ready.notify_all();
            }
        }
    }

    fn sample(&self, ticket: &Ticket) -> Result<Sample<T>> {
        let samples = ticket.order.len();
        let own = ticket.order[ticket.slot];
        let mut first_error = None;
        for offset in 0..samples.min(MAX_SUBSTITUTES) {
            let index = ticket.order[(ticket.slot + offset) % samples];
            let error = match self.make(index, own, ticket.epoch) {
                Ok(made) => return Ok(Some(made)),
                Err(error) => error,
            };
            self.note(index as usize, &error);
            match self.options.unreadable {
                Unreadable::Omit => return Ok(None),
                Unreadable::Fail => return Err(error),
                Unreadable::Replace => first_error.get_or_insert(error),
            };
        }
        let tried = samples.min(MAX_SUBSTITUTES);
        let cause = first_error.map(|e| e.to_string()).unwrap_or_default();
        Err(Error::Dataset {
            path: self.source.name(own as usize),
            cause: format!("neither it nor the {} samples after it could be used; it: {cause}", tried - 1),
        })
    }

    fn make(&self, number: u32, stream: u32, epoch: u64) -> Result<Made<T>> {
        let index = number as usize;
        let stream = |purpose| Stream::new(self.options.seed, purpose, epoch, u64::from(stream));
        let made = catch_unwind(AssertUnwindSafe(|| {
            let captions = self.source.captions(index)?;
            let image = self.source.sample(index, &mut stream(Purpose::CLIP))?;
            // A transform sees pixels only: what it refuses gets its name here.
            let named = |error: Error| Error::Dataset {
                path: self.source.sample_name(index, &mut stream(Purpose::CLIP)),
                cause: error.to_string(),
            };
            let values = (self.transform)(&image, &mut stream(Purpose::AUGMENT)).map_err(named)?;
            let caption = if self.options.shuffle {
                stream(Purpose::CAPTION).pick(&captions).cloned()
            } else {
                captions.into_iter().next()
            };
            Ok(Made { index: number, label: self.source.label(index), values, caption })
        }));
        made.unwrap_or_else(|_| {
            Err(Error::Image { path: self.source.name(index), cause: "the transform panicked on it".to_owned() })
        })
    }

    fn note(&self, index: usize, error: &Error) {
        if locked(&self.failures).insert(index, error.to_string()).is_none() {
            tracing::warn!("{error}");
        }
    }
}

fn begun<T>(state: &mut State<T>, batch: u64) -> Option<&mut Begun<T>> {
    let at = batch.checked_sub(state.handed_out)?;
    state.begun.get_mut(at as usize)
}

#[cfg(test)]
mod tests;
