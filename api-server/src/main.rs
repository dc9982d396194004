//! `mayfly`: one microVM, controlled by a REST API on a Unix socket.
//!
//! This crate is the porch: HTTP, JSON and the command line. What it is asked to do it passes on to `vmm`, whose thread owns the
//! machine. This thread never blocks while it serves.

#![forbid(unsafe_code)]

mod app;
mod cli;
mod config_file;
mod demo;
mod error;
mod identity;
mod logger;
mod process;
mod routes;
mod server;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    vmm::sys::process::prepare();
    ExitCode::from(process::run(std::env::args_os().collect()))
}
