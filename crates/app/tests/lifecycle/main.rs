//! Changes to a running process, with the real binary: nothing may be lost.

mod backends;
mod certificates;
mod drain;
mod last_good;
mod listeners;
mod reload;
mod support;
mod upgrade;
