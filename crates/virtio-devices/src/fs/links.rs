//! What the driver's threads read in symbolic links of late.
//!
//! A path walk of the guest is a request a component, and the host may change the
//! tree in between. The kubelet updates a volume by renaming a new link over the
//! old one and removing what the old one led to: the walk of a thread that has
//! just read the old link finds nothing there, though at no moment was anything
//! missing. ESTALE makes the guest's kernel begin such a walk anew, once. Which
//! walks deserve it is decided here, by what their thread read.

use super::table::Place;
use std::collections::VecDeque;

/// Most links remembered: the newest, of a thread and in all.
const MAX_PER_THREAD: usize = 8;
const MAX_LINKS: usize = 256;

/// A link as a thread of the guest read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReadLink {
    /// The thread's number in the guest.
    thread: u32,
    /// Where the link is.
    pub(super) place: Place,
    pub(super) target: Box<[u8]>,
    /// ESTALE was answered because of it.
    answered: u32,
}

impl ReadLink {
    /// The name in the link's own directory that its target begins with. What
    /// leads out of that directory is not in this list.
    fn leads_to(&self) -> &[u8] {
        first_component(&self.target).unwrap_or_default()
    }
}

/// `None` for a target that is not beneath the link's directory.
fn first_component(target: &[u8]) -> Option<&[u8]> {
    if target.starts_with(b"/") {
        return None;
    }
    let mut parts = target.split(|byte| *byte == b'/');
    let first = parts.find(|part| !part.is_empty() && *part != b".")?;
    (first != b"..").then_some(first)
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ReadLinks(VecDeque<ReadLink>);

impl ReadLinks {
    /// A thread is told a link's target.
    pub(super) fn add(&mut self, thread: u32, place: &Place, target: &[u8]) {
        let links = &mut self.0;
        links.retain(|link| link.thread != thread || link.place != *place);
        if first_component(target).is_none() {
            return;
        }
        let of_thread = |link: &&ReadLink| link.thread == thread;
        if links.iter().filter(of_thread).count() >= MAX_PER_THREAD
            && let Some(oldest) = links.iter().position(|link| link.thread == thread)
        {
            links.remove(oldest);
        }
        if links.len() >= MAX_LINKS {
            links.pop_front();
        }
        links.push_back(ReadLink {
            thread,
            place: place.clone(),
            target: target.into(),
            answered: 0,
        });
    }

    /// The links by which a thread may have come to a name in a directory.
    pub(super) fn leading_to(&self, thread: u32, dir: u64, name: &[u8]) -> Vec<ReadLink> {
        let leads = |link: &&ReadLink| {
            link.thread == thread && link.place.0 == dir && link.leads_to() == name
        };
        self.0.iter().filter(leads).cloned().collect()
    }

    /// Whether nothing is known of a thread.
    pub(super) fn is_empty_for(&self, thread: u32) -> bool {
        !self.0.iter().any(|link| link.thread == thread)
    }

    /// ESTALE is answered to a question after a link's old target, for the last
    /// time once it was `most` times: a walk that begins anew by the same name,
    /// and not by the link, shall hear the truth.
    pub(super) fn answered(&mut self, link: &ReadLink, most: u32) {
        let same = |other: &ReadLink| other.thread == link.thread && other.place == link.place;
        if let Some(index) = self.0.iter().position(same) {
            let found = &mut self.0[index];
            found.answered += 1;
            if found.answered >= most {
                self.0.remove(index);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(dir: u64, name: &str) -> Place {
        (dir, name.as_bytes().into())
    }

    #[test]
    fn only_targets_beneath_the_link_s_directory_count() {
        for (target, first) in [
            ("v1", Some("v1")),
            (".//v1/key", Some("v1")),
            ("..v1", Some("..v1")),
            ("/v1", None),
            ("../v1", None),
            ("./../v1", None),
            (".", None),
            ("", None),
        ] {
            let found = first_component(target.as_bytes());
            assert_eq!(found, first.map(str::as_bytes), "{target:?}");
        }
    }

    #[test]
    fn a_link_is_remembered_as_its_thread_read_it_last() {
        let mut links = ReadLinks::default();
        links.add(7, &place(2, "data"), b"v1");
        links.add(8, &place(2, "data"), b"v1");
        links.add(7, &place(2, "data"), b"v2/x");
        assert!(links.leading_to(7, 2, b"v1").is_empty());
        assert!(links.leading_to(7, 3, b"v2").is_empty());
        let found = links.leading_to(7, 2, b"v2");
        assert_eq!(&*found[0].target, b"v2/x");
        assert_eq!(links.leading_to(8, 2, b"v1").len(), 1);
        // A target elsewhere takes the old one's place, too.
        links.add(7, &place(2, "data"), b"/v3");
        assert!(links.is_empty_for(7));
    }

    #[test]
    fn estale_is_answered_a_few_times_only() {
        let mut links = ReadLinks::default();
        links.add(7, &place(2, "data"), b"v1");
        let link = links.leading_to(7, 2, b"v1").remove(0);
        links.answered(&link, 2);
        assert!(!links.is_empty_for(7));
        links.answered(&link, 2);
        assert!(links.is_empty_for(7));
        links.answered(&link, 2);
    }

    #[test]
    fn the_newest_links_stay() {
        let mut links = ReadLinks::default();
        for thread in 0..100 {
            for n in 0..20 {
                links.add(thread, &place(2, &n.to_string()), b"v1");
            }
        }
        assert_eq!(links.0.len(), MAX_LINKS);
        assert_eq!(links.leading_to(99, 2, b"v1").len(), MAX_PER_THREAD);
        assert!(links.0.iter().any(|link| *link.place.1 == *b"19"));
    }
}
