//! Looks after the memory of renderings. Fuel bounds the steps of a template, not what one step takes: forty that double a text take
//! all memory there is, inside the engine, where nothing can refuse. So where a rendering takes long and the program grows
//! meanwhile, the program ends with words, before the system ends it without.

use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What the program may grow by during one rendering.
const MOST_GROWTH: u64 = 1 << 30;
/// How often is looked.
const LOOK: Duration = Duration::from_millis(30);
/// A page of memory; where pages are larger a rendering is ended later.
const PAGE: u64 = 4096;
/// After so long without a rendering nobody looks any more.
const IDLE: Duration = Duration::from_secs(1);

/// The rendering of one thread.
struct Rendering {
    /// Counts up when one begins and when it ends: odd while it lasts.
    count: AtomicU64,
    /// The template's place.
    place: Mutex<Arc<Path>>,
}

thread_local! {
    static OWN: RefCell<Option<Arc<Rendering>>> = const { RefCell::new(None) };
}

static ALL: Mutex<Vec<Arc<Rendering>>> = Mutex::new(Vec::new());
static LOOKING: AtomicBool = AtomicBool::new(false);
static TOLD: AtomicBool = AtomicBool::new(false);

/// Lasts as long as a rendering.
pub(super) struct Watched(Arc<Rendering>);

impl Watched {
    /// A rendering of the template from this place begins.
    pub(super) fn begin(place: &Arc<Path>) -> Watched {
        let own = OWN.with_borrow_mut(|own| {
            let new = || {
                let rendering = Arc::new(Rendering { count: AtomicU64::new(0), place: Mutex::new(place.clone()) });
                ALL.lock().unwrap_or_else(PoisonError::into_inner).push(rendering.clone());
                rendering
            };
            own.get_or_insert_with(new).clone()
        });
        *own.place.lock().unwrap_or_else(PoisonError::into_inner) = place.clone();
        own.count.fetch_add(1, Ordering::Release);
        if !LOOKING.swap(true, Ordering::AcqRel) {
            std::thread::spawn(look);
        }
        Watched(own)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.count.fetch_add(1, Ordering::Release);
    }
}

/// Looks at all renderings until there has been none for a while.
fn look() {
    // Of each rendering that lasts: its count, and the memory at which it was first seen.
    let mut lasting: Vec<(u64, u64)> = Vec::new();
    let mut last_seen = Instant::now();
    while last_seen.elapsed() < IDLE {
        std::thread::sleep(LOOK);
        let all = ALL.lock().unwrap_or_else(PoisonError::into_inner).clone();
        lasting.resize(all.len(), (0, 0));
        for (rendering, (seen, before)) in all.iter().zip(&mut lasting) {
            let count = rendering.count.load(Ordering::Acquire);
            if count % 2 == 0 {
                // Many short ones: somebody is at work.
                if count != *seen {
                    (*seen, last_seen) = (count, Instant::now());
                }
                continue;
            }
            last_seen = Instant::now();
            let memory = memory();
            if count != *seen {
                (*seen, *before) = (count, memory);
            } else if memory > before.saturating_add(MOST_GROWTH) {
                end(rendering);
            }
        }
    }
    LOOKING.store(false, Ordering::Release);
}

/// Ends the program where this thread renders a template: an allocation has just failed, and nothing here allocates.
pub(crate) fn end_without_memory() {
    let own = OWN.try_with(|own| own.try_borrow().ok().and_then(|own| own.clone())).ok().flatten();
    if let Some(rendering) = own.filter(|it| it.count.load(Ordering::Acquire) % 2 == 1) {
        end(&rendering);
    }
}

fn end(rendering: &Rendering) -> ! {
    // Several threads may come here: one tells it.
    if TOLD.swap(true, Ordering::AcqRel) {
        loop {
            std::thread::park();
        }
    }
    let place = rendering.place.lock().unwrap_or_else(PoisonError::into_inner);
    eprintln!(
        "error: {}: chat template: one rendering takes more than {} MiB of memory\nhint: it makes a text or a list longer \
         and longer; choose another by chat_template_path",
        place.display(),
        MOST_GROWTH >> 20
    );
    std::process::exit(1)
}

/// The memory of this program that is no file's, in bytes; 0 where it cannot be told.
fn memory() -> u64 {
    let fields = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let field = |index: usize| fields.split(' ').nth(index).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    field(1).saturating_sub(field(2)) * PAGE
}
