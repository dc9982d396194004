/// Most queues of a drive, and most pairs of queues of a network interface.
pub const MAX_QUEUES: u8 = 16;

/// Why a number of queues was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "num_queues is {0}: it must be from 1 to {MAX_QUEUES}. As many as the machine has vCPUs are the most that a guest can use."
)]
pub struct BadQueueCount(pub u64);

/// How many queues a drive has, or how many pairs of them a network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueCount(u8);

impl QueueCount {
    /// From 1 to [`MAX_QUEUES`].
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u64> for QueueCount {
    type Error = BadQueueCount;

    fn try_from(count: u64) -> Result<Self, BadQueueCount> {
        match u8::try_from(count) {
            Ok(few @ 1..=MAX_QUEUES) => Ok(Self(few)),
            _ => Err(BadQueueCount(count)),
        }
    }
}

/// What carries a machine's virtio devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A window of registers, and one interrupt for all queues.
    Mmio,
    /// A PCI function, with an interrupt for each queue.
    Pci,
}

impl Transport {
    /// How many queues a drive has, or how many pairs of them a network interface, if so many were asked for. Where they share an interrupt,
    /// more than one is for who knows why. A network interface has only as many as its tap has room for.
    pub fn queues(self, asked: Option<QueueCount>, vcpus: u8) -> u8 {
        match (asked, self) {
            (Some(count), _) => count.get(),
            (None, Self::Mmio) => 1,
            (None, Self::Pci) => vcpus.clamp(1, MAX_QUEUES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_what_is_taken_if_there_is_none() {
        for bad in [0, 17, 256, u64::MAX] {
            let text = QueueCount::try_from(bad).unwrap_err().to_string();
            assert!(text.starts_with(&format!("num_queues is {bad}: it must be from 1 to 16.")), "{text}");
        }
        let two = QueueCount::try_from(2).ok();
        for transport in [Transport::Mmio, Transport::Pci] {
            assert_eq!(transport.queues(two, 4), 2);
        }
        assert_eq!([1, 4, 32].map(|vcpus| Transport::Mmio.queues(None, vcpus)), [1, 1, 1]);
        assert_eq!([1, 4, 32].map(|vcpus| Transport::Pci.queues(None, vcpus)), [1, 4, 16]);
    }
}
