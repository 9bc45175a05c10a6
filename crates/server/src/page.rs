//! The monitor's page, at `/monitor`: for browsers, which the API refuses. The page only reads, and looks at requests itself.

use crate::host::Hosts;
use crate::reply::{ChannelBody, Piece, Reply};
use crate::state::State;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::Request;
use hyper::body::Incoming;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use wardian_monitor::{Body, Page};

/// How long a listener may take nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a path is the page's.
pub(crate) fn is_meant(path: &str) -> bool {
    path.strip_prefix("/monitor").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Answers a request of the page's. Without `hosts` any host may be named: browsers do not speak to unix sockets.
pub(crate) async fn reply(
    state: &Arc<State>,
    page: &Page,
    request: Request<Incoming>,
    hosts: Option<&Hosts>,
) -> Reply {
    let (parts, _) = request.into_parts();
    let answer = page.answer(&parts, hosts.map(|hosts| &hosts.page)).await;
    answer.map(|body| match body.known() {
        Some(known) => Either::Left(Full::new(known)),
        None => Either::Right(passed_on(state.clone(), body)),
    })
}

/// Passes messages on until the client has gone, takes none, or the server stops.
fn passed_on(state: Arc<State>, mut body: Body) -> ChannelBody {
    let (send, pieces) = mpsc::channel(1);
    tokio::spawn(async move {
        let pass = async {
            while let Some(Ok(frame)) = body.frame().await {
                let Ok(data) = frame.into_data() else { continue };
                let sent = tokio::time::timeout(PATIENCE, send.send(Piece::Data(data))).await;
                if !matches!(sent, Ok(Ok(()))) {
                    return false;
                }
            }
            true
        };
        let is_whole = tokio::select! {
            is_whole = pass => is_whole,
            () = send.closed() => false,
            () = state.stopping() => true,
        };
        if is_whole {
            // Fails if the client does not take the message before this one: then the connection is cut.
            let _ = send.try_send(Piece::End);
        }
    });
    ChannelBody::new(pieces, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_part_of_the_paths() {
        for (path, is) in
            [("/monitor", true), ("/monitor/x", true), ("/monitors", false), ("/containers", false)]
        {
            assert_eq!(is_meant(path), is, "{path}");
        }
    }
}
