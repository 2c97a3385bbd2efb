//! Which events lie between what somebody was told and what is.

use cri_api::v1::ContainerEventType;
use serde::{Deserialize, Serialize};

/// How far a sandbox or container is, as events tell it. It never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// It exists.
    Created,
    /// It runs.
    Started,
    /// It has ended.
    Stopped,
}

/// The events from `told` (`None`: nothing) to `now` (`None`: gone), each with what
/// is known after it. `started`: whether it ever ran.
pub(crate) fn missing(
    told: Option<Phase>,
    now: Option<Phase>,
    started: bool,
) -> Vec<(ContainerEventType, Option<Phase>)> {
    use ContainerEventType::{
        ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
    };
    let up_to = match (told, now) {
        (_, Some(now)) => now,
        // It never was, for all they know.
        (None, None) => return Vec::new(),
        // Whether one that was created ran before it went is not known any more.
        (Some(Phase::Created), None) => Phase::Created,
        (Some(_), None) => Phase::Stopped,
    };
    let mut events = Vec::new();
    for (phase, event) in [
        (Phase::Created, ContainerCreatedEvent),
        (Phase::Started, ContainerStartedEvent),
        (Phase::Stopped, ContainerStoppedEvent),
    ] {
        let is_new = told.is_none_or(|told| phase > told);
        let passed_over = phase == Phase::Started && up_to == Phase::Stopped && !started;
        if is_new && phase <= up_to && !passed_over {
            events.push((event, Some(phase)));
        }
    }
    if now.is_none() {
        events.push((ContainerDeletedEvent, None));
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use Phase::{Created, Started, Stopped};
    use proptest::prelude::*;

    /// The events' first letters: Created, Started, sTopped, Deleted.
    fn letters(told: Option<Phase>, now: Option<Phase>, started: bool) -> String {
        let letter = |(event, _): (ContainerEventType, _)| match event {
            ContainerEventType::ContainerCreatedEvent => 'C',
            ContainerEventType::ContainerStartedEvent => 'S',
            ContainerEventType::ContainerStoppedEvent => 'T',
            ContainerEventType::ContainerDeletedEvent => 'D',
        };
        missing(told, now, started)
            .into_iter()
            .map(letter)
            .collect()
    }

    #[test]
    fn every_step_between_is_told_once() {
        for (told, now, started, expected) in [
            (None, Some(Created), false, "C"),
            (None, Some(Started), true, "CS"),
            (None, Some(Stopped), true, "CST"),
            (None, Some(Stopped), false, "CT"),
            (None, None, true, ""),
            (Some(Created), Some(Created), false, ""),
            (Some(Created), Some(Stopped), true, "ST"),
            (Some(Created), None, true, "D"),
            (Some(Started), Some(Stopped), true, "T"),
            (Some(Started), None, true, "TD"),
            (Some(Stopped), None, true, "D"),
            (Some(Stopped), Some(Started), true, ""),
        ] {
            assert_eq!(letters(told, now, started), expected, "{told:?} {now:?}");
        }
    }

    fn phase() -> impl Strategy<Value = Option<Phase>> {
        prop_oneof![
            Just(None),
            Just(Some(Created)),
            Just(Some(Started)),
            Just(Some(Stopped))
        ]
    }

    proptest! {
        #[test]
        fn who_was_told_all_is_told_no_more(
            told in phase(), now in phase(), started in any::<bool>(),
        ) {
            let mut known = told;
            for (_, then) in missing(told, now, started) {
                known = then;
            }
            prop_assert!(missing(known, now, started).is_empty());
        }
    }
}
