//! The list of all groups, and what was last reported of each.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError};

use devices::metrics::{Metric, MetricGroup, Spread};

/// All groups of this process.
pub static REGISTRY: Registry = Registry::new();

/// Groups in the order they were added, but for those that came in the place of one that had gone.
///
/// The list grows at its end and never shrinks, and nobody waits at it: readers may be signal handlers. An entry that is being changed is passed
/// over, which can happen only to a reader on another thread than the VMM's.
#[derive(Debug)]
pub struct Registry {
    first: Link,
}

type Link = OnceLock<Box<Node>>;

#[derive(Debug)]
struct Node {
    entry: Mutex<Entry>,
    next: Link,
}

/// An entry that is looked at.
pub struct Seen<'r>(MutexGuard<'r, Entry>);

impl Deref for Seen<'_> {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.0
    }
}

/// Where the numbers are.
#[derive(Clone)]
pub enum Group {
    /// Of the process.
    Static(&'static dyn MetricGroup),
    /// Of a device, which may be gone before they are.
    Shared(Arc<dyn MetricGroup>),
}

impl Group {
    /// The numbers.
    pub fn get(&self) -> &dyn MetricGroup {
        match self {
            Self::Static(group) => *group,
            Self::Shared(group) => &**group,
        }
    }
}

/// A number as a report shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// A count since the last settled report, or a stored value.
    Number(u64),
    /// Durations since the last settled report.
    Spread(Spread),
}

impl Value {
    /// What `metric` shows of nothing.
    pub fn zero(metric: Metric<'_>) -> Self {
        match metric {
            Metric::Counter(_) | Metric::Stored(_) => Self::Number(0),
            Metric::Latency(_) => Self::Spread(Spread::default()),
        }
    }
}

/// What was reported of one number: of a counter its value, of durations their sum in nanoseconds.
#[derive(Debug, Default)]
struct Mark {
    /// In the last report that was delivered.
    settled: AtomicU64,
    /// In the last report.
    shown: AtomicU64,
}

/// One group, by name. Of reports that show differences there is one at a time: whoever makes them holds a lock of his own.
pub struct Entry {
    family: &'static str,
    id: Option<Box<str>>,
    group: Group,
    marks: Box<[Mark]>,
    /// What it counts is not there any more.
    gone: bool,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.family, self.id.as_deref().unwrap_or(""))
    }
}

impl Entry {
    fn new(family: &'static str, id: Option<&str>, group: Group) -> Self {
        let mut count = 0;
        group.get().v1(&mut |_, _| count += 1);
        let marks = std::iter::repeat_with(Mark::default).take(count).collect();
        Self { family, id: id.map(Into::into), group, marks, gone: false }
    }

    /// What kind of thing the group is of, by its name in the v1 metrics file.
    pub fn family(&self) -> &'static str {
        self.family
    }

    /// Which one of its kind, where there may be several.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The numbers themselves.
    pub fn group(&self) -> &dyn MetricGroup {
        self.group.get()
    }

    /// Shows what has happened since the last settlement.
    pub fn read(&self, see: &mut dyn FnMut(&'static str, Value)) {
        let mut marks = self.marks.iter();
        self.group().v1(&mut |name, metric| {
            let Some(mark) = marks.next() else { return };
            let value = match metric {
                Metric::Counter(counter) => {
                    let now = counter.get();
                    mark.shown.store(now, Ordering::Relaxed);
                    Value::Number(now.wrapping_sub(mark.settled.load(Ordering::Relaxed)))
                }
                Metric::Stored(stored) => Value::Number(stored.get()),
                Metric::Latency(latency) => {
                    let gathered = latency.gathered();
                    mark.shown.store(gathered.sum_ns(), Ordering::Relaxed);
                    Value::Spread(gathered.spread())
                }
            };
            see(name, value);
        });
    }

    /// The last reading was delivered: the next one begins where it ended. A reading that is not settled is contained in the next one.
    pub fn settle(&self) {
        let mut marks = self.marks.iter();
        self.group().v1(&mut |_, metric| {
            let Some(mark) = marks.next() else { return };
            let shown = mark.shown.load(Ordering::Relaxed);
            match metric {
                Metric::Counter(_) => mark.settled.store(shown, Ordering::Relaxed),
                Metric::Stored(_) => {}
                Metric::Latency(latency) => latency.settle(shown),
            }
        });
    }
}

impl Registry {
    /// An empty one.
    pub const fn new() -> Self {
        Self { first: OnceLock::new() }
    }

    /// Adds a group of the kind `family`; `id` says which one, where there may be several.
    pub fn add(&self, family: &'static str, id: Option<&str>, group: Group) {
        let entry = Entry::new(family, id, group);
        if let Some(mut place) = self.nodes().filter_map(look).find(|seen| seen.0.gone) {
            *place.0 = entry;
            return;
        }
        let mut node = Box::new(Node { entry: Mutex::new(entry), next: OnceLock::new() });
        let mut link = &self.first;
        // Someone else may add at the same moment; then the end is further on.
        while let Err(again) = link.set(node) {
            node = again;
            match link.get() {
                Some(there) => link = &there.next,
                None => return,
            }
        }
    }

    /// Takes out a group: what it counts has gone.
    pub fn remove(&self, family: &str, id: Option<&str>) {
        for mut seen in self.family(family).filter(|seen| seen.id() == id) {
            seen.0.gone = true;
        }
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        std::iter::successors(self.first.get(), |node| node.next.get()).map(|node| &**node)
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = Seen<'_>> {
        self.nodes().filter_map(look).filter(|seen| !seen.0.gone)
    }

    /// The entries of one kind.
    pub fn family<'r>(&'r self, family: &str) -> impl Iterator<Item = Seen<'r>> {
        self.iter().filter(move |entry| entry.family == family)
    }
}

/// The entry of a node, if nobody changes it at this moment.
fn look(node: &Node) -> Option<Seen<'_>> {
    match node.entry.try_lock() {
        Ok(entry) => Some(Seen(entry)),
        Err(TryLockError::Poisoned(entry)) => Some(Seen(entry.into_inner())),
        Err(TryLockError::WouldBlock) => None,
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    devices::metric_group! {
        struct Sample {
            count: Counter,
            stored: Stored,
            time_agg: Latency,
        }
    }

    /// What comes takes the place of what has gone, so that the list does not grow with each drive that is plugged.
    #[test]
    fn places_are_used_again() {
        let registry = Registry::new();
        let group = || Group::Shared(Arc::new(Sample::default()));
        registry.add("block", Some("root"), group());
        for n in 0..100 {
            registry.add("block", Some(&n.to_string()), group());
            assert_eq!(registry.family("block").count(), 2);
            registry.remove("block", Some(&n.to_string()));
            registry.remove("net", Some("root"));
            assert_eq!(registry.family("block").count(), 1);
        }
        assert_eq!(registry.nodes().count(), 2);
    }

    fn values(entry: &Entry) -> Vec<Value> {
        let mut values = Vec::new();
        entry.read(&mut |_, value| values.push(value));
        values
    }

    #[test]
    fn a_reading_that_is_not_settled_is_contained_in_the_next() {
        let registry = Registry::new();
        let sample = Arc::new(Sample::new());
        registry.add("sample", Some("a"), Group::Shared(sample.clone()));
        let entry = registry.family("sample").next().unwrap();
        let spread = |min_us, max_us, sum_us| Value::Spread(Spread { min_us, max_us, sum_us });
        sample.count.add(2);
        sample.stored.set(9);
        sample.time_agg.record_ns(5_000);
        assert_eq!(values(&entry), [Value::Number(2), Value::Number(9), spread(5, 5, 5)]);
        sample.count.add(1);
        assert_eq!(values(&entry), [Value::Number(3), Value::Number(9), spread(5, 5, 5)]);
        // What happens between reading and settling belongs to the next report.
        sample.count.add(4);
        sample.time_agg.record_ns(1_000);
        entry.settle();
        let left = values(&entry);
        assert_eq!(left[..2], [Value::Number(4), Value::Number(9)]);
        assert!(matches!(left[2], Value::Spread(Spread { sum_us: 1, .. })), "{left:?}");
        entry.settle();
        assert_eq!(values(&entry), [Value::Number(0), Value::Number(9), spread(0, 0, 0)]);
    }

    #[test]
    fn many_may_add_at_once() {
        let registry = Registry::new();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let registry = &registry;
                scope.spawn(move || {
                    for n in 0..50 {
                        let id = format!("{thread}_{n}");
                        registry.add("sample", Some(&id), Group::Shared(Arc::new(Sample::new())));
                    }
                });
            }
        });
        let ids: std::collections::BTreeSet<_> = registry.iter().map(|e| e.id().unwrap().to_owned()).collect();
        assert_eq!((registry.iter().count(), ids.len()), (200, 200));
        assert_eq!(registry.family("other").count(), 0);
    }
}
