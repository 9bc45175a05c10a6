//! Links, routes, traffic control and connection tracking, each test in a network namespace of its own.

mod bandwidth;
mod bridges;
mod connections;
mod world;
