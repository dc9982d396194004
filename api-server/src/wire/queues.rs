use vmm::config::QueueCount;
use vmm::{Error, Subject};

/// `num_queues` of a drive or a network interface.
pub(crate) fn count(num_queues: Option<u64>, subject: Subject) -> Result<Option<QueueCount>, Error> {
    num_queues.map(|count| QueueCount::try_from(count).map_err(|e| Error::invalid(subject, e))).transpose()
}
