//! Tests on small hostile worlds.

mod model;
