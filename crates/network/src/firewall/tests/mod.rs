//! The firewall with real links and packets.

mod life;
mod log;
mod measure;
mod packets;
mod spoof;
mod world;
