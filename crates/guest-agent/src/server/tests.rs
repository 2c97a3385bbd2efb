//! The protocol as a host sees it, over a socket pair: no container is needed to
//! be refused, forgotten or told about.

use super::*;
use crate::container::request::check_id;
use guest_api::proto::open_stream::Stream;
use guest_api::proto::{
    CreateContainerRequest, ExitStatus, ListContainersRequest, OpenStream, RemoveContainerRequest,
    SetupSandboxRequest, ShutdownRequest, SignalContainerRequest, StartContainerRequest,
    StreamOpened, SubscribeRequest, event,
};
use nix::sys::signal::SigSet;
use proptest::prelude::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use wire::proto::error::Code;
use wire::proto::{Error as WireAnswer, Hello};

struct Host {
    server: Server,
    stream: UnixStream,
}

/// A server without listeners and a greeted connection to it.
fn host(port: Port) -> Host {
    // An empty mask: these tests end no processes.
    let signals = SignalFd::new(&SigSet::empty()).unwrap();
    let mut server = Server::new(Agent::new(0), signals).unwrap();
    let stream = connect(&mut server, port);
    let mut host = Host { server, stream };
    let hello: Hello = wire::read_frame(&mut host.stream).unwrap().unwrap();
    wire::check_hello(&hello).unwrap();
    host.write(&wire::hello("test"));
    host
}

fn connect(server: &mut Server, port: Port) -> UnixStream {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    rustix::io::ioctl_fionbio(&ours, true).unwrap();
    server.add_connection(ours, port);
    UnixStream::from(theirs)
}

impl Host {
    fn write(&mut self, message: &impl prost::Message) {
        wire::write_frame(&mut self.stream, message).unwrap();
    }

    /// Lets the server do all it can do now.
    fn settle(&mut self) {
        for _ in 0..4 {
            self.server.turn(Some(Duration::ZERO)).unwrap();
        }
    }

    fn next(&mut self) -> Kind {
        self.settle();
        let message: ServerMessage = wire::read_frame(&mut self.stream).unwrap().unwrap();
        message.kind.unwrap()
    }

    fn call(&mut self, id: u64, call: Call) -> Answer {
        self.write(&ClientMessage {
            id,
            call: Some(call),
        });
        match self.next() {
            Kind::Response(response) => {
                assert_eq!(response.id, id);
                response.result.unwrap()
            }
            Kind::Event(event) => panic!("{event:?}"),
        }
    }

    fn error(&mut self, call: Call) -> (Code, String) {
        match self.call(9, call) {
            Answer::Error(error) => (error.code(), error.field),
            other => panic!("{other:?}"),
        }
    }

    /// The server has closed the connection.
    fn is_closed(&mut self) -> bool {
        self.settle();
        self.stream.set_nonblocking(true).unwrap();
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).is_ok()
    }
}

#[test]
fn calls_of_an_empty_guest_are_answered() {
    let mut host = host(Port::Control);
    let list = host.call(1, Call::ListContainers(ListContainersRequest {}));
    assert!(matches!(list, Answer::ListContainers(l) if l.containers.is_empty()));
    let container_id = "c".to_owned();
    let remove = Call::RemoveContainer(RemoveContainerRequest { container_id });
    let removed = host.call(2, remove);
    assert!(matches!(removed, Answer::RemoveContainer(_)));
}

#[test]
fn calls_at_the_wrong_moment_are_refused() {
    let mut host = host(Port::Control);
    let create = Call::CreateContainer(CreateContainerRequest::default());
    assert_eq!(host.error(create).0, Code::FailedPrecondition);
    let container_id = "c".to_owned();
    let start = Call::StartContainer(StartContainerRequest { container_id });
    assert_eq!(host.error(start).0, Code::NotFound);
    let signal = |signal| {
        Call::SignalContainer(SignalContainerRequest {
            container_id: "c".to_owned(),
            signal,
            all: false,
        })
    };
    assert_eq!(host.error(signal(9)).0, Code::NotFound);
    for wrong in [0, 65, u32::MAX] {
        let error = host.error(signal(wrong));
        assert_eq!(error, (Code::InvalidArgument, "signal".to_owned()));
    }
    let setup = Call::SetupSandbox(SetupSandboxRequest::default());
    assert_eq!(host.error(setup).0, Code::InvalidArgument);
}

#[test]
fn a_call_of_a_later_version_is_unimplemented() {
    let mut host = host(Port::Control);
    host.write(&ClientMessage { id: 5, call: None });
    match host.next() {
        Kind::Response(response) => match response.result.unwrap() {
            Answer::Error(error) => assert_eq!(error.code(), Code::Unimplemented),
            other => panic!("{other:?}"),
        },
        Kind::Event(event) => panic!("{event:?}"),
    }
}

#[test]
fn subscribers_get_what_happened_before_and_after() {
    let mut host = host(Port::Control);
    host.server.agent.events.exited("a", ExitStatus::default());
    host.server.agent.events.exited("b", ExitStatus::default());
    let subscribe = Call::Subscribe(SubscribeRequest { after_seq: 1 });
    let answer = host.call(1, subscribe);
    assert!(matches!(answer, Answer::Subscribe(s) if s.last_seq == 2));
    host.server.agent.events.exited("c", ExitStatus::default());
    let mut seen = Vec::new();
    for _ in 0..2 {
        match host.next() {
            Kind::Event(event) => match event.kind.unwrap() {
                event::Kind::Exited(exited) => seen.push((event.seq, exited.container_id)),
            },
            Kind::Response(response) => panic!("{response:?}"),
        }
    }
    assert_eq!(seen, [(2, "b".to_owned()), (3, "c".to_owned())]);
}

#[test]
fn shutdown_is_answered_and_ends_the_loop() {
    let mut host = host(Port::Control);
    let answer = host.call(1, Call::Shutdown(ShutdownRequest {}));
    assert!(matches!(answer, Answer::Shutdown(_)));
    host.server.run().unwrap();
}

#[test]
fn a_malformed_frame_closes_its_connection_only() {
    let mut host = host(Port::Control);
    let mut second = connect(&mut host.server, Port::Control);
    let _: Hello = wire::read_frame(&mut second).unwrap().unwrap();
    wire::write_frame(&mut second, &wire::hello("second")).unwrap();
    host.stream.write_all(&[2, 0, 0, 0, 0xff, 0xff]).unwrap();
    assert!(host.is_closed());
    host.stream = second;
    let list = host.call(3, Call::ListContainers(ListContainersRequest {}));
    assert!(matches!(list, Answer::ListContainers(_)));
}

#[test]
fn another_major_version_is_turned_away() {
    let mut host = host(Port::Control);
    let mut other = connect(&mut host.server, Port::Control);
    let _: Hello = wire::read_frame(&mut other).unwrap().unwrap();
    let hello = Hello {
        major: wire::MAJOR + 1,
        ..wire::hello("other")
    };
    wire::write_frame(&mut other, &hello).unwrap();
    host.stream = other;
    assert!(host.is_closed());
}

#[test]
fn a_host_that_never_reads_is_dropped_not_fed() {
    let mut host = host(Port::Control);
    let subscribe = Call::Subscribe(SubscribeRequest { after_seq: 0 });
    host.call(1, subscribe);
    // Far more than a socket and the backlog hold.
    for _ in 0..120 {
        for _ in 0..1000 {
            let id = "x".repeat(100);
            check_id(&id).unwrap();
            host.server.agent.events.exited(&id, ExitStatus::default());
        }
        host.settle();
    }
    assert!(host.server.controls.is_empty());
}

#[test]
fn a_stream_of_an_unknown_container_is_refused_with_the_reason() {
    let mut host = host(Port::Stream);
    host.write(&OpenStream {
        container_id: "ghost".to_owned(),
        stream: Stream::Stdout.into(),
        keep_open: false,
    });
    host.settle();
    let opened: StreamOpened = wire::read_frame(&mut host.stream).unwrap().unwrap();
    let error: WireAnswer = opened.error.unwrap();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message.contains("ghost"));
    assert!(host.is_closed());
}

#[test]
fn a_newcomer_that_leaves_is_forgotten() {
    let mut host = host(Port::Stream);
    let (other, _) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut host.stream, other));
    host.settle();
    assert!(host.server.newcomers.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        stream in any::<bool>(),
    ) {
        let mut host = host(if stream { Port::Stream } else { Port::Control });
        host.stream.write_all(&bytes).unwrap();
        host.settle();
        // Others are served all the same.
        let mut second = connect(&mut host.server, Port::Control);
        let _: Hello = wire::read_frame(&mut second).unwrap().unwrap();
        wire::write_frame(&mut second, &wire::hello("second")).unwrap();
        host.stream = second;
        let list = host.call(3, Call::ListContainers(ListContainersRequest {}));
        prop_assert!(matches!(list, Answer::ListContainers(_)));
    }
}
