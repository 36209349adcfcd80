//! A cache of values of one type, and how it shows up in slabinfo.
/* rows: G6 G16 */
//> user 3 is three
//> user 7 in the slot of user 3: true
//> slabinfo: session

use slabwright::kernel::{Cache, Gfp, SlabFlags};
use slabwright::mm::Report;

struct Session {
    user: u32,
    name: String,
}

impl Session {
    fn new(user: u32, name: &str) -> Session {
        Session { user, name: name.to_owned() }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sessions = Cache::<Session>::create("session", SlabFlags::HWCACHE_ALIGN.with(SlabFlags::NO_MERGE))?;
    let three = sessions.insert(Session::new(3, "three"), Gfp::KERNEL)?;
    println!("user {} is {}", three.user, three.name);
    let place = &raw const *three;
    drop(three);
    // What was freed last is handed out first: it is still in the processor's cache.
    let seven = sessions.insert(Session::new(7, "seven"), Gfp::KERNEL)?;
    println!("user {} in the slot of user 3: {}", seven.user, core::ptr::eq(place, &raw const *seven));

    let mut text = String::new();
    slabwright::global::report(Report::Slabinfo, &mut text)?;
    for line in text.lines().filter(|line| line.starts_with("session")) {
        println!("slabinfo: {line}");
    }
    Ok(())
}
