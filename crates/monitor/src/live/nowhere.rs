//! No server.

use super::{Live, News, Seen};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often it is told that there is none.
const PERIOD: Duration = Duration::from_secs(5);

/// There is no server, for this reason: the history is shown alone.
#[derive(Debug)]
pub struct Nowhere(pub &'static str);

impl Live for Nowhere {
    fn tell<'a>(&'a self, to: mpsc::Sender<News>) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            loop {
                let at_ms = super::usage::now_ms();
                let seen = Seen { at_ms, down: Some(self.0.to_owned()), ..Seen::default() };
                if to.send(News::Seen(Box::new(seen))).await.is_err() {
                    return;
                }
                tokio::time::sleep(PERIOD).await;
            }
        })
    }
}
