//! The balloon with a driver made by hand.

mod give_back;
mod life;
mod model;
mod rig;
