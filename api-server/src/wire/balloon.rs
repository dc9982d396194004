use serde::{Deserialize, Serialize};
use vmm::config::BalloonConfig;
use vmm::requests::{BalloonStatistics, HintingStatus};

/// Body of `PUT /balloon`, and of its GET.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Balloon {
    pub(crate) amount_mib: u32,
    pub(crate) deflate_on_oom: bool,
    #[serde(default)]
    pub(crate) stats_polling_interval_s: u16,
    #[serde(default)]
    pub(crate) free_page_hinting: bool,
    #[serde(default)]
    pub(crate) free_page_reporting: bool,
}

/// Body of `PATCH /balloon`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BalloonPatch {
    pub(crate) amount_mib: u32,
}

/// Body of `PATCH /balloon/statistics`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BalloonStatisticsPatch {
    pub(crate) stats_polling_interval_s: u16,
}

/// Body of `PATCH /balloon/hinting/start`, which may also be left out; unknown fields are ignored, as the contract has it.
#[derive(Debug, Deserialize)]
pub(crate) struct HintingStart {
    #[serde(default = "yes")]
    pub(crate) acknowledge_on_stop: bool,
}

fn yes() -> bool {
    true
}

impl Default for HintingStart {
    fn default() -> Self {
        Self { acknowledge_on_stop: yes() }
    }
}

/// Reply of `GET /balloon/hinting/status`.
#[derive(Debug, Serialize)]
pub(crate) struct Hinting {
    host_cmd: u32,
    guest_cmd: Option<u32>,
}

impl From<Balloon> for BalloonConfig {
    fn from(wire: Balloon) -> Self {
        Self {
            amount_mib: wire.amount_mib,
            deflate_on_oom: wire.deflate_on_oom,
            stats_polling_interval_s: wire.stats_polling_interval_s,
            free_page_hinting: wire.free_page_hinting,
            free_page_reporting: wire.free_page_reporting,
        }
    }
}

impl From<BalloonConfig> for Balloon {
    fn from(config: BalloonConfig) -> Self {
        Self {
            amount_mib: config.amount_mib,
            deflate_on_oom: config.deflate_on_oom,
            stats_polling_interval_s: config.stats_polling_interval_s,
            free_page_hinting: config.free_page_hinting,
            free_page_reporting: config.free_page_reporting,
        }
    }
}

impl From<HintingStatus> for Hinting {
    fn from(status: HintingStatus) -> Self {
        Self { host_cmd: status.host_cmd, guest_cmd: status.guest_cmd }
    }
}

macro_rules! statistics {
    ($($always:ident),+; $($reported:ident),+) => {
        /// Reply of `GET /balloon/statistics`. What the guest does not report is left out.
        #[derive(Debug, Serialize)]
        pub(crate) struct Statistics {
            $($always: u32,)+
            $(#[serde(skip_serializing_if = "Option::is_none")] $reported: Option<u64>,)+
        }

        impl From<BalloonStatistics> for Statistics {
            fn from(said: BalloonStatistics) -> Self {
                Self { $($always: said.$always,)+ $($reported: said.$reported,)+ }
            }
        }
    };
}

statistics! {
    target_pages, actual_pages, target_mib, actual_mib;
    swap_in, swap_out, major_faults, minor_faults, free_memory, total_memory, available_memory, disk_caches, hugetlb_allocations,
    hugetlb_failures, oom_kill, alloc_stall, async_scan, direct_scan, async_reclaim, direct_reclaim
}
