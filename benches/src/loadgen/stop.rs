//! A flag that ends a generator early, shared by the generator and its caller.

use std::sync::Arc;

use tokio::sync::watch;

/// A stop flag; clones share it, and it cannot be reset.
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
    /// Sets the flag.
    pub fn stop(&self) {
        self.state.send_replace(true);
    }

    /// Whether the flag is set.
    pub fn is_stopped(&self) -> bool {
        *self.state.borrow()
    }

    /// Waits until the flag is set.
    pub async fn stopped(&self) {
        // `self` holds the sender: the wait cannot fail.
        let _ = self.state.subscribe().wait_for(|stopped| *stopped).await;
    }
}
