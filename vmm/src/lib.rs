//! The virtual machine monitor.
//!
//! One thread (the VMM thread, [`actor`]) owns the machine; everyone else sends it [`requests`] through a [`Handle`]. This crate
//! knows KVM, memory, vCPUs, boot and the life cycle; it knows nothing of HTTP, JSON, tokio or command lines.

pub mod actor;
pub mod arch;
pub mod blueprint;
pub mod boot;
pub mod config;
pub mod confine;
pub mod error;
pub mod event_loop;
pub mod exit;
pub mod io_thread;
pub mod kvm;
pub mod lifecycle;
pub mod machine;
pub mod memory;
pub mod requests;
pub mod snapshot;
pub mod sys;
pub mod telemetry;
pub mod threads;
pub mod vcpu;

pub use actor::{Handle, Settings, Vmm, create, launch};
pub use error::{Error, Kind, Subject};
pub use exit::ExitReason;
pub use lifecycle::{Ask, Phase};
