//! A TAP joined to a CNI interface: every frame that comes in by one goes out by
//! the other (tc ingress qdisc, mirred egress redirect), before the host kernel's
//! own network stack sees it.
//!
//! The addresses stay on the CNI interface: since all that arrives there is
//! redirected, ARP and ICMP included, the kernel of the pod's namespace never
//! answers for the guest; and plugins look for the addresses on CHECK and on
//! DEL (bridge removes its masquerade rules by them).

use crate::anti_spoof::Instruction;
use crate::netlink::{Netlink, NetlinkError};
use netlink_packet_core::{DefaultNla, Emitable, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption,
    TcActionOption, TcActionType, TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption,
    TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption,
    TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

/// Attributes of cls_bpf that the crate does not name (linux/pkt_cls.h).
const TCA_BPF_ACT: u16 = 1;
const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;
/// All protocols (ETH_P_ALL), as the kernel wants it: in network byte order.
const ETH_P_ALL: u16 = 0x0003_u16.to_be();
/// What a classic BPF program answers to drop (linux/pkt_cls.h, TC_ACT_SHOT).
const TC_ACT_SHOT: u32 = 2;
const RET_K: u16 = 0x06;

/// Sends every frame that comes in by interface `from` out by interface `to`.
pub(crate) fn all(netlink: &mut Netlink, from: u32, to: u32) -> Result<(), NetlinkError> {
    ingress(netlink, from)?;
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    // One key with an empty mask: matches every frame.
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let options = vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![redirect_to(to)])),
    ];
    add_filter(netlink, from, 1, TcFilterU32::KIND, options)
}

/// Sends the frames that come in by `from` and that `program` matches out by
/// `to`; drops all others.
pub(crate) fn matching(
    netlink: &mut Netlink,
    from: u32,
    to: u32,
    program: &[Instruction],
) -> Result<(), NetlinkError> {
    ingress(netlink, from)?;
    // The filter that drops comes first: no frame passes between the two calls.
    let drop = Instruction {
        code: RET_K,
        jump_true: 0,
        jump_false: 0,
        k: TC_ACT_SHOT,
    };
    let mut options = code(&[drop]);
    options.push(TcOption::Bpf(TcFilterBpfOption::Flags(
        TcBpfFlags::DirectAction,
    )));
    add_filter(netlink, from, 2, TcFilterBpf::KIND, options)?;
    let mut options = code(program);
    let actions = vec![redirect_to(to)];
    let mut bytes = vec![0; actions.as_slice().buffer_len()];
    actions.as_slice().emit(&mut bytes);
    options.push(TcOption::Bpf(TcFilterBpfOption::Other(DefaultNla::new(
        TCA_BPF_ACT,
        bytes,
    ))));
    add_filter(netlink, from, 1, TcFilterBpf::KIND, options)
}

/// Adds the ingress qdisc, where filters for incoming frames hang.
fn ingress(netlink: &mut Netlink, index: u32) -> Result<(), NetlinkError> {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = TcHandle {
        major: 0xffff,
        minor: 0,
    };
    message.attributes.push(TcAttribute::Kind("ingress".into()));
    netlink.change(
        &format!("add an ingress qdisc to interface {index} (sch_ingress)"),
        RouteNetlinkMessage::NewQueueDiscipline(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

fn add_filter(
    netlink: &mut Netlink,
    index: u32,
    priority: u16,
    kind: &str,
    options: Vec<TcOption>,
) -> Result<(), NetlinkError> {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = TcHandle {
        major: 0xffff,
        minor: 0,
    };
    message.header.info = u32::from(TcHandle {
        major: priority,
        minor: ETH_P_ALL,
    });
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    message.attributes.push(TcAttribute::Options(options));
    netlink.change(
        &format!("add a {kind} filter to interface {index} (cls_{kind}, act_mirred)"),
        RouteNetlinkMessage::NewTrafficFilter(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

fn redirect_to(index: u32) -> TcAction {
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = index;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    action
}

fn code(program: &[Instruction]) -> Vec<TcOption> {
    let bytes = program
        .iter()
        .flat_map(|i| {
            let [c0, c1] = i.code.to_ne_bytes();
            let [k0, k1, k2, k3] = i.k.to_ne_bytes();
            [c0, c1, i.jump_true, i.jump_false, k0, k1, k2, k3]
        })
        .collect();
    let length = u16::try_from(program.len()).unwrap_or(u16::MAX);
    [
        DefaultNla::new(TCA_BPF_OPS_LEN, length.to_ne_bytes().to_vec()),
        DefaultNla::new(TCA_BPF_OPS, bytes),
    ]
    .map(|nla| TcOption::Bpf(TcFilterBpfOption::Other(nla)))
    .to_vec()
}
