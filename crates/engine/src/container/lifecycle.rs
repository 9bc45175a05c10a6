//! The lifecycle of a container: its states, and what each event does in each of them. One pure function decides; the rest of
//! the engine asks it and keeps no flag of its own.
//!
//! ```text
//!   create                                   a restart of the server
//!     │                                                │
//!     ▼         Created               Answered         ▼
//! Creating ──────────────▶ Active ◀──────────────── Recorded
//!     │ Lost                │   ▲ ╲ Stopped, Resumed    │ Lost
//!     │                Lost │   ╰──╯                    │
//!     ▼                     ▼                           ▼
//! Broken, not created     Broken ◀──────────────────────╯
//!     │                     │  ▲
//!     │ Destroy, Undo       │  │ TeardownFailed
//!     ╰─────────────────────┴──┴──▶ Ending ──────▶ Gone
//!       Creating: Undo alone         ▲      Ended
//!       Active: Destroy, Undo ───────╯
//! ```

/// The state of a container. `K` is a handle of its keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State<K> {
    /// The container is being created: clients do not see it. The keeper is known once it is asked to launch
    /// pid 1.
    Creating { keeper: Option<K> },
    /// An earlier server has created the container, and the keeper has not answered this server yet.
    Recorded { stopped: bool },
    /// The keeper and pid 1 live. `stopped`: a stop has ended everything else, and nothing was started since.
    Active { keeper: K, stopped: bool },
    /// The keeper or pid 1 has ended, or a teardown has failed: the container can only be destroyed.
    /// `created`: the record says that the create was complete.
    Broken { keeper: Option<K>, created: bool, reason: String },
    /// The teardown is under way; the state before it decides what clients see meanwhile.
    Ending { was: Box<Self> },
    /// The record is removed.
    Gone,
}

/// What happens to a container, or is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<K> {
    /// A client asks for information, limits, metrics or the grace time.
    Look,
    /// A client asks the keeper for something: a process, a transfer, a stop.
    Use,
    /// The record is to be changed.
    Change,
    /// The keeper is asked to launch pid 1; or that of a half-made container has answered the next server.
    Launched(K),
    /// The keeper has answered the next server, and pid 1 lives.
    Answered(K),
    /// The record says that the create is complete.
    Created,
    /// A stop is done.
    Stopped,
    /// Something was started after a stop.
    Resumed,
    /// The keeper or pid 1 has ended, or does not answer, for this reason.
    Lost { keeper: Option<K>, reason: String },
    /// A client, or the end of the grace time, asks for the teardown.
    Destroy,
    /// A create has failed, in this server or in an earlier one.
    Undo,
    /// A process of the container does not die, or something else of the teardown fails, for this reason.
    TeardownFailed(String),
    /// The record is removed.
    Ended,
}

/// Why an event is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// For clients there is no such container.
    Unknown,
    /// The container can only be destroyed, for this reason.
    Broken(String),
    /// The teardown has begun already.
    Ending,
    /// The event cannot happen in this state: the engine has a bug.
    Impossible,
}

impl<K: Clone> State<K> {
    /// Returns the keeper, if there is one.
    pub fn keeper(&self) -> Option<&K> {
        match self {
            Self::Creating { keeper } | Self::Broken { keeper, .. } => keeper.as_ref(),
            Self::Active { keeper, .. } => Some(keeper),
            Self::Ending { was } => was.keeper(),
            Self::Recorded { .. } | Self::Gone => None,
        }
    }

    /// Returns why the container is broken.
    pub fn broken(&self) -> Option<&str> {
        match self {
            Self::Broken { reason, .. } => Some(reason),
            Self::Ending { was } => was.broken(),
            _ => None,
        }
    }

    /// Whether nothing but pid 1 is left to run in it.
    pub fn is_stopped(&self) -> bool {
        match self {
            Self::Recorded { stopped } | Self::Active { stopped, .. } => *stopped,
            Self::Ending { was } => was.is_stopped(),
            _ => self.broken().is_some(),
        }
    }

    /// Whether the record says that the create was complete.
    fn is_created(&self) -> bool {
        match self {
            Self::Creating { .. } | Self::Gone => false,
            Self::Recorded { .. } | Self::Active { .. } => true,
            Self::Broken { created, .. } => *created,
            Self::Ending { was } => was.is_created(),
        }
    }

    /// Returns the state after an event.
    ///
    /// # Errors
    /// The event is refused; the state stays as it is.
    pub fn after(&self, event: Event<K>) -> Result<Self, Refusal> {
        use Event as E;
        use State::{Active, Broken, Creating, Ending, Gone, Recorded};
        let same = || Ok(self.clone());
        let ending = || Ok(Ending { was: Box::new(self.clone()) });
        let broken =
            |keeper: &Option<K>, created, reason| Ok(Broken { keeper: keeper.clone(), created, reason });
        match (self, event) {
            // What a client may ask.
            (_, E::Look) => {
                if self.is_created() {
                    same()
                } else {
                    Err(Refusal::Unknown)
                }
            }
            (Active { .. }, E::Use) => same(),
            (Broken { created: true, reason, .. }, E::Use) => Err(Refusal::Broken(reason.clone())),
            // The keeper refuses requests that come too late.
            (Ending { was }, E::Use) => was.after(E::Use).map(|_| self.clone()),
            (_, E::Use) | (Creating { .. } | Recorded { .. }, E::Destroy) => Err(Refusal::Unknown),
            // A record that is being removed must not come back.
            (Ending { .. } | Gone, E::Change) => Err(Refusal::Unknown),
            (_, E::Change) => same(),

            // From the create to a living container, …
            (Creating { .. }, E::Launched(keeper)) => Ok(Creating { keeper: Some(keeper) }),
            (Creating { keeper: Some(keeper) }, E::Created) => {
                Ok(Active { keeper: keeper.clone(), stopped: false })
            }
            (Broken { keeper, created: false, reason }, E::Created) => broken(keeper, true, reason.clone()),
            (Recorded { stopped }, E::Answered(keeper)) => Ok(Active { keeper, stopped: *stopped }),
            // … which is stopped and used again; it may have been lost meanwhile, …
            (Active { keeper, .. }, E::Stopped) => Ok(Active { keeper: keeper.clone(), stopped: true }),
            (Active { keeper, .. }, E::Resumed) => Ok(Active { keeper: keeper.clone(), stopped: false }),
            (Broken { .. } | Ending { .. } | Gone, E::Stopped | E::Resumed) => same(),
            // … and is lost once: the first reason counts, and the teardown ends its keeper.
            (Creating { .. } | Recorded { .. } | Active { .. }, E::Lost { keeper, reason }) => {
                broken(&keeper.or_else(|| self.keeper().cloned()), self.is_created(), reason)
            }
            (Broken { .. } | Ending { .. } | Gone, E::Lost { .. }) => same(),

            // The teardown.
            (Active { .. } | Broken { .. }, E::Destroy | E::Undo) | (Creating { .. }, E::Undo) => ending(),
            (Ending { .. } | Gone, E::Destroy | E::Undo) => Err(Refusal::Ending),
            (Ending { was }, E::TeardownFailed(reason)) => {
                broken(&was.keeper().cloned(), was.is_created(), reason)
            }
            (Ending { .. }, E::Ended) => Ok(Gone),

            // Events that cannot happen in these states.
            _ => Err(Refusal::Impossible),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type S = State<u8>;
    type E = Event<u8>;

    fn broken(keeper: Option<u8>, created: bool, reason: &str) -> S {
        State::Broken { keeper, created, reason: reason.into() }
    }

    fn ending(was: S) -> S {
        State::Ending { was: was.into() }
    }

    /// Every state, with the letter by which the table names it.
    fn states() -> Vec<(&'static str, S)> {
        let active = |stopped| State::Active { keeper: 1, stopped };
        vec![
            ("c", State::Creating { keeper: None }),
            ("C", State::Creating { keeper: Some(1) }),
            ("r", State::Recorded { stopped: false }),
            ("R", State::Recorded { stopped: true }),
            ("a", active(false)),
            ("A", active(true)),
            ("n", broken(None, false, "lost")),
            ("N", broken(Some(1), false, "lost")),
            ("b", broken(None, true, "lost")),
            ("B", broken(Some(1), true, "lost")),
            ("ec", ending(State::Creating { keeper: None })),
            ("eC", ending(State::Creating { keeper: Some(1) })),
            ("ea", ending(active(false))),
            ("eA", ending(active(true))),
            ("en", ending(broken(None, false, "lost"))),
            ("eN", ending(broken(Some(1), false, "lost"))),
            ("eb", ending(broken(None, true, "lost"))),
            ("eB", ending(broken(Some(1), true, "lost"))),
            ("g", State::Gone),
        ]
    }

    /// One line a state, one column an event: the next state, or `-` unknown, `!` broken, `~` ending, `x` impossible.
    const TABLE: &str = "
        state Look Use Change Launched Answered Created Stopped Resumed Lost Destroy Undo TeardownFailed Ended
        c     -    -   c      C        x        x       x       x       n    -       ec   x              x
        C     -    -   C      C        x        a       x       x       N    -       eC   x              x
        r     r    -   r      x        a        x       x       x       b    -       x    x              x
        R     R    -   R      x        A        x       x       x       b    -       x    x              x
        a     a    a   a      x        x        x       A       a       B    ea      ea   x              x
        A     A    A   A      x        x        x       A       a       B    eA      eA   x              x
        n     -    -   n      x        x        b       n       n       n    en      en   x              x
        N     -    -   N      x        x        B       N       N       N    eN      eN   x              x
        b     b    !   b      x        x        x       b       b       b    eb      eb   x              x
        B     B    !   B      x        x        x       B       B       B    eB      eB   x              x
        ec    -    -   -      x        x        x       ec      ec      ec   ~       ~    n              g
        eC    -    -   -      x        x        x       eC      eC      eC   ~       ~    N              g
        ea    ea   ea  -      x        x        x       ea      ea      ea   ~       ~    B              g
        eA    eA   eA  -      x        x        x       eA      eA      eA   ~       ~    B              g
        en    -    -   -      x        x        x       en      en      en   ~       ~    n              g
        eN    -    -   -      x        x        x       eN      eN      eN   ~       ~    N              g
        eb    eb   !   -      x        x        x       eb      eb      eb   ~       ~    b              g
        eB    eB   !   -      x        x        x       eB      eB      eB   ~       ~    B              g
        g     -    -   -      x        x        x       g       g       g    ~       ~    x              x
    ";

    fn event(name: &str) -> E {
        match name {
            "Look" => E::Look,
            "Use" => E::Use,
            "Change" => E::Change,
            "Launched" => E::Launched(1),
            "Answered" => E::Answered(1),
            "Created" => E::Created,
            "Stopped" => E::Stopped,
            "Resumed" => E::Resumed,
            "Lost" => E::Lost { keeper: None, reason: "lost".into() },
            "Destroy" => E::Destroy,
            "Undo" => E::Undo,
            "TeardownFailed" => E::TeardownFailed("lost".into()),
            "Ended" => E::Ended,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn every_event_in_every_state() {
        let states = states();
        let letter = |state: &S| states.iter().find(|(_, known)| known == state).map(|(letter, _)| *letter);
        let shown = |result: Result<S, Refusal>| match result {
            Ok(state) => letter(&state).unwrap_or_else(|| panic!("{state:?} is not in the table")).to_owned(),
            Err(Refusal::Unknown) => "-".into(),
            Err(Refusal::Broken(reason)) if reason == "lost" => "!".into(),
            Err(Refusal::Broken(reason)) => reason,
            Err(Refusal::Ending) => "~".into(),
            Err(Refusal::Impossible) => "x".into(),
        };
        let mut lines = TABLE.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut lines = lines.by_ref().filter(|line| !line.is_empty());
        let events = lines.next().unwrap();
        let rows: Vec<_> = lines.collect();
        let named: Vec<&str> = rows.iter().map(|row| row[0]).collect();
        assert_eq!(named, states.iter().map(|(letter, _)| *letter).collect::<Vec<_>>());
        for (row, (_, state)) in rows.iter().zip(&states) {
            let found: Vec<String> = events[1..].iter().map(|name| shown(state.after(event(name)))).collect();
            assert_eq!(found, row[1..], "{state:?}: {:?}", &events[1..]);
        }
    }

    #[test]
    fn the_keeper_that_comes_with_a_loss_is_ended_with_the_container() {
        let lost = E::Lost { keeper: Some(2), reason: "no pid 1".into() };
        let state = State::Recorded { stopped: true }.after(lost).unwrap();
        assert_eq!((state.keeper(), state.broken(), state.is_stopped()), (Some(&2), Some("no pid 1"), true));
        let ending = state.after(E::Destroy).unwrap();
        assert_eq!((ending.keeper(), ending.broken()), (Some(&2), Some("no pid 1")));
        let failed = ending.after(E::TeardownFailed("stuck".into())).unwrap();
        assert_eq!((failed.keeper(), failed.broken()), (Some(&2), Some("stuck")));
    }
}
