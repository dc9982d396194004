//! The device with a hand-made driver on one side and real sockets on the other.

mod flow;
mod hostile;
mod life;
mod mixture;
mod rig;
