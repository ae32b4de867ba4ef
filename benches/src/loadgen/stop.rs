//! A request to end early, shared between whoever waits for a generator and the generator.

use std::sync::Arc;

use tokio::sync::watch;

/// Once stopped it stays stopped; clones share it.
#[derive(Debug, Clone)]
pub struct Stop {
    state: Arc<watch::Sender<bool>>,
}

impl Default for Stop {
    fn default() -> Self {
        Self { state: Arc::new(watch::channel(false).0) }
    }
}

impl Stop {
    /// Asks for the end.
    pub fn stop(&self) {
        self.state.send_replace(true);
    }

    /// Whether the end was asked for.
    pub fn is_stopped(&self) -> bool {
        *self.state.borrow()
    }

    /// Waits until the end is asked for.
    pub async fn stopped(&self) {
        // `self` holds the sender: the wait cannot fail.
        let _ = self.state.subscribe().wait_for(|stopped| *stopped).await;
    }
}
