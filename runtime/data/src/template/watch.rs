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

/// The renderings of one thread.
struct Rendering {
    /// Counts up when one begins and when it ends: odd while it lasts.
    count: AtomicU64,
    /// The template's place.
    place: Mutex<Arc<Path>>,
    /// The count when it was last looked at, and the memory at which this one was first seen; of who looks alone.
    seen: AtomicU64,
    before: AtomicU64,
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
        let own = OWN.with_borrow_mut(|own| own.get_or_insert_with(|| Rendering::of_thread(place)).clone());
        *own.place.lock().unwrap_or_else(PoisonError::into_inner) = place.clone();
        own.count.fetch_add(1, Ordering::SeqCst);
        // Where no thread can be had nobody looks, and templates are bounded by fuel alone.
        if !LOOKING.swap(true, Ordering::SeqCst) && std::thread::Builder::new().spawn(look).is_err() {
            LOOKING.store(false, Ordering::SeqCst);
        }
        Watched(own)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.count.fetch_add(1, Ordering::SeqCst);
    }
}

impl Rendering {
    fn of_thread(place: &Arc<Path>) -> Arc<Rendering> {
        let (count, place) = (AtomicU64::new(0), Mutex::new(place.clone()));
        let new = Arc::new(Rendering { count, place, seen: AtomicU64::new(0), before: AtomicU64::new(0) });
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of threads that have ended are nobody else's.
        all.retain(|rendering| Arc::strong_count(rendering) > 1);
        all.push(new.clone());
        new
    }

    fn lasts(&self) -> bool {
        !self.count.load(Ordering::SeqCst).is_multiple_of(2)
    }

    /// Looks at it: whether anything happened since the last look, or lasts. Ends the program where it takes too much.
    fn look(&self) -> bool {
        let count = self.count.load(Ordering::SeqCst);
        let is_new = self.seen.swap(count, Ordering::SeqCst) != count;
        if count.is_multiple_of(2) {
            return is_new;
        }
        let memory = memory();
        if is_new {
            self.before.store(memory, Ordering::SeqCst);
        } else if memory > self.before.load(Ordering::SeqCst).saturating_add(MOST_GROWTH) {
            end(self);
        }
        true
    }
}

fn all() -> Vec<Arc<Rendering>> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Looks at all renderings until there has been none for a while.
fn look() {
    loop {
        let mut last = Instant::now();
        while last.elapsed() < IDLE {
            std::thread::sleep(LOOK);
            // Not `any`: each is looked at.
            if all().iter().filter(|rendering| rendering.look()).count() > 0 {
                last = Instant::now();
            }
        }
        LOOKING.store(false, Ordering::SeqCst);
        // One that began just now saw somebody looking; unless another looks already, it is looked after.
        if !all().iter().any(|rendering| rendering.lasts()) || LOOKING.swap(true, Ordering::SeqCst) {
            return;
        }
    }
}

/// Ends the program where this thread renders a template: an allocation has just failed, and nothing here allocates.
pub(crate) fn end_without_memory() {
    let own = OWN.try_with(|own| own.try_borrow().ok().and_then(|own| own.clone())).ok().flatten();
    if let Some(rendering) = own.filter(|rendering| rendering.lasts()) {
        end(&rendering);
    }
}

fn end(rendering: &Rendering) -> ! {
    // Several threads may come here: one tells it.
    if TOLD.swap(true, Ordering::SeqCst) {
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
