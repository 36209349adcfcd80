//! Empty: cargo wants a target in each package.
