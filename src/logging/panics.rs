//! Panics become lines of the log instead of the standard library's text on stderr. The program survives them, but somebody
//! who reads the log must see them.

use std::panic::{self, PanicHookInfo};

/// Logs all panics from now on.
pub(super) fn log() {
    panic::set_hook(Box::new(|panic| {
        let (level, message) = describe(panic);
        log::log!(level, "{message}");
    }));
}

fn describe(panic: &PanicHookInfo<'_>) -> (log::Level, String) {
    // The standard library's text is the place, a line break and the reason.
    (log::Level::Error, panic.to_string().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::thread;

    use super::*;

    #[test]
    fn a_panic_is_one_line_with_its_place_and_reason() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ours = Arc::clone(&heard);
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| ours.lock().unwrap().push(describe(panic))));
        let ended = thread::spawn(|| panic!("no\nreason")).join();
        panic::set_hook(usual);
        assert!(ended.is_err());
        let heard = heard.lock().unwrap();
        let (level, message) = heard.iter().find(|(_, message)| message.contains("reason")).unwrap();
        assert_eq!(*level, log::Level::Error);
        assert!(message.starts_with("panicked at src/logging/panics.rs:"), "{message}");
        assert!(message.ends_with(" no reason"), "{message}");
    }
}
