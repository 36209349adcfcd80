//! Tests on small hostile worlds.

mod behaviour;
mod model;
