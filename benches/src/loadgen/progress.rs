//! The progress bar of a run of known duration. It is not drawn if standard error is not a terminal.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::clock;

const REDRAW_INTERVAL: Duration = Duration::from_millis(100);

/// Whether a run draws a progress bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressOutput {
    /// A bar, if standard error is a terminal.
    Bar,
    /// No output.
    Nothing,
}

/// A progress bar over time; cleared when dropped.
#[derive(Debug)]
pub struct Progress {
    end: Option<mpsc::Sender<()>>,
    painter: Option<thread::JoinHandle<()>>,
}

impl Progress {
    /// Starts a bar for `duration`; `message` supplies the text beside it.
    pub fn start(
        show: ProgressOutput,
        label: &str,
        duration: Duration,
        message: impl Fn() -> String + Send + 'static,
    ) -> Self {
        if show == ProgressOutput::Nothing {
            return Self { end: None, painter: None };
        }
        let bar = ProgressBar::new(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {elapsed_precise} {msg}");
        bar.set_style(style.expect("the template is a valid constant").progress_chars("=> "));
        bar.set_prefix(label.to_owned());
        let (end, ended) = mpsc::channel::<()>();
        let painter = thread::spawn(move || {
            let start = clock::now();
            while ended.recv_timeout(REDRAW_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
                bar.set_position(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX));
                bar.set_message(message());
            }
            bar.finish_and_clear();
        });
        Self { end: Some(end), painter: Some(painter) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end = None;
        if let Some(painter) = self.painter.take() {
            // A failed progress bar does not matter.
            let _ = painter.join();
        }
    }
}
