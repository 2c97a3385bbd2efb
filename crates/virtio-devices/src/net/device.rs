//! The queues of the network device.

use super::control;
use super::counters::{NetHandle, Shared};
use super::header::{ETHERNET_LEN, HEADER_LEN, MAX_PACKET};
use super::rx::{Rx, RxTurn, Shape};
use super::tap::{NetError, Tap};
use super::tx::{Filter, Tx, TxTurn};
use crate::device::{DeviceError, Queues, VirtioDevice};
use crate::serve::{Turn, serve};
use crate::wakeup::Wakeup;
use rustix::event::epoll;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemoryMmap;

/// Most queue pairs of one device.
pub const MAX_QUEUE_PAIRS: usize = 8;
/// Least and largest MTU in bytes: what IPv4 asks for, and what a TAP can have.
const MIN_MTU: u16 = 68;
pub(super) const MAX_MTU: u16 = 65_521;
/// Size of the queues for frames, and of the control queue.
const QUEUE_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 16;
/// Room for a VLAN tag beside the MTU.
const VLAN_LEN: usize = 4;
/// Bytes of the configuration space (5.1.4) up to the MTU.
const CONFIG_LEN: usize = 12;

/// What a device is like.
#[derive(Clone, Copy, Debug)]
pub struct NetSettings {
    /// For logs and threads, at most ten characters.
    pub name: &'static str,
    /// The guest's address.
    pub mac: [u8; 6],
    /// Bytes, 68 to 65521.
    pub mtu: u32,
    /// Frames of the guest from other addresses are dropped.
    pub anti_spoof: bool,
}

/// A receive queue and a transmit queue with their TAP queue.
#[derive(Debug)]
struct Pair {
    tap: Tap,
    rx: Rx,
    tx: Tx,
    /// The TAP spreads frames over it.
    attached: bool,
    watched: epoll::EventFlags,
}

/// The network device.
#[derive(Debug)]
pub struct Net {
    settings: NetSettings,
    mtu: u16,
    pairs: Vec<Pair>,
    queue_sizes: Vec<u16>,
    /// How many pairs the driver uses; 0 while it is not ready.
    active: usize,
    features: u64,
    counters: Arc<Shared>,
    epoll: OwnedFd,
    wakeup: Wakeup,
    /// A turn of the control queue was used up.
    control_waits: bool,
    /// What went wrong where no error could be returned.
    fault: Option<io::Error>,
}

impl Net {
    /// A device on opened TAP queues (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR; more
    /// than one with IFF_MULTI_QUEUE), a pair of queues for each.
    ///
    /// # Errors
    /// If a descriptor is none of these, or the settings cannot be.
    pub fn new(settings: NetSettings, taps: Vec<OwnedFd>) -> Result<(Net, NetHandle), NetError> {
        let taps = taps.into_iter().map(Tap::new).collect::<Result<_, _>>()?;
        Self::with_taps(settings, taps)
    }

    pub(crate) fn with_taps(
        settings: NetSettings,
        taps: Vec<Tap>,
    ) -> Result<(Net, NetHandle), NetError> {
        if !(1..=MAX_QUEUE_PAIRS).contains(&taps.len()) {
            return Err(NetError::Pairs(taps.len()));
        }
        let mtu = u16::try_from(settings.mtu)
            .ok()
            .filter(|mtu| (MIN_MTU..=MAX_MTU).contains(mtu))
            .ok_or(NetError::Mtu(settings.mtu))?;
        if settings.mac[0] & 1 != 0 || settings.mac == [0; 6] {
            return Err(NetError::Mac);
        }
        let host = |what| move |source| NetError::Host { what, source };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|e| host("make an epoll descriptor")(e.into()))?;
        let wakeup = Wakeup::new();
        if let Some(fd) = wakeup.fd() {
            let data = epoll::EventData::new_u64(0);
            epoll::add(&epoll, fd, data, epoll::EventFlags::IN)
                .map_err(|e| host("watch the device's own calls")(e.into()))?;
        }
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * taps.len()];
        if taps.len() > 1 {
            queue_sizes.push(CONTROL_SIZE);
        }
        let counters = Arc::<Shared>::default();
        let handle = NetHandle {
            shared: Arc::clone(&counters),
        };
        let pairs = taps.into_iter().map(|tap| Pair {
            tap,
            rx: Rx::new(),
            tx: Tx::default(),
            attached: true,
            watched: epoll::EventFlags::empty(),
        });
        let mut net = Net {
            settings,
            mtu,
            pairs: pairs.collect(),
            queue_sizes,
            active: 0,
            features: 0,
            counters,
            epoll,
            wakeup,
            control_waits: false,
            fault: None,
        };
        net.attach(1)
            .map_err(host("leave queues of the TAP that no one serves"))?;
        Ok((net, handle))
    }

    fn has(&self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }

    /// Has the TAP use its first `count` queues.
    fn attach(&mut self, count: usize) -> io::Result<()> {
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            let wanted = index < count;
            // The first of them always is.
            if pair.attached != wanted {
                pair.tap.attach(wanted)?;
                pair.attached = wanted;
            }
        }
        Ok(())
    }

    /// Uses `count` pairs from now on.
    fn set_active(&mut self, count: usize) -> io::Result<()> {
        self.attach(count.max(1))?;
        for pair in self.pairs.iter_mut().skip(count) {
            pair.rx.reset();
            pair.tx = Tx::default();
        }
        self.active = count;
        self.watch()
    }

    /// Watches each TAP for what its queues wait for. A TAP that nothing is
    /// wanted of is not watched at all, as its errors would be reported for ever.
    fn watch(&mut self) -> io::Result<()> {
        use epoll::EventFlags as Flags;
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            let mut wanted = Flags::empty();
            if index < self.active {
                wanted.set(Flags::IN, !pair.rx.starved);
                wanted.set(Flags::OUT, pair.tx.blocked);
            }
            if wanted == pair.watched {
                continue;
            }
            let data = epoll::EventData::new_u64(0);
            if wanted.is_empty() {
                epoll::delete(&self.epoll, &pair.tap)?;
            } else if pair.watched.is_empty() {
                epoll::add(&self.epoll, &pair.tap, data, wanted)?;
            } else {
                epoll::modify(&self.epoll, &pair.tap, data, wanted)?;
            }
            pair.watched = wanted;
        }
        Ok(())
    }

    fn shape(&self) -> Shape {
        let segments = self.has(VIRTIO_NET_F_GUEST_TSO4) || self.has(VIRTIO_NET_F_GUEST_TSO6);
        Shape {
            mergeable: self.has(VIRTIO_NET_F_MRG_RXBUF),
            max_packet: if segments {
                MAX_PACKET
            } else {
                HEADER_LEN + ETHERNET_LEN + VLAN_LEN + usize::from(self.mtu)
            },
        }
    }

    fn receive(
        &mut self,
        index: usize,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        let shape = self.shape();
        let (Some(pair), Some(queue)) = (self.pairs.get_mut(index), queues.get_mut(2 * index))
        else {
            return Ok(());
        };
        let number = u16::try_from(2 * index).unwrap_or(u16::MAX);
        let Pair { tap, rx, .. } = pair;
        let counters = &self.counters.rx;
        while rx.turn(number, tap, memory, *queue, shape, counters)? == RxTurn::Spent {
            if self.wakeup.raise() {
                break;
            }
        }
        Ok(())
    }

    fn transmit(
        &mut self,
        index: usize,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        let filter = Filter {
            features: self.features,
            source: self.settings.anti_spoof.then_some(self.settings.mac),
        };
        let (Some(pair), Some(queue)) = (self.pairs.get_mut(index), queues.get_mut(2 * index + 1))
        else {
            return Ok(());
        };
        let number = u16::try_from(2 * index + 1).unwrap_or(u16::MAX);
        let Pair { tap, tx, .. } = pair;
        let counters = &self.counters.tx;
        while tx.turn(number, tap, memory, *queue, filter, counters)? == TxTurn::Spent {
            if self.wakeup.raise() {
                break;
            }
        }
        Ok(())
    }

    /// The control queue comes after all pairs that the driver could use.
    fn control_index(&self) -> Option<usize> {
        let pairs = if self.has(VIRTIO_NET_F_MQ) {
            self.pairs.len()
        } else {
            1
        };
        self.has(VIRTIO_NET_F_CTRL_VQ).then_some(2 * pairs)
    }

    fn control(
        &mut self,
        index: usize,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        let Some(queue) = queues.get_mut(index) else {
            return Ok(());
        };
        let number = u16::try_from(index).unwrap_or(u16::MAX);
        let most = if self.has(VIRTIO_NET_F_MQ) {
            self.pairs.len()
        } else {
            0
        };
        let mut failed = None;
        let turn = serve(number, memory, *queue, |chain| {
            control::answer(&chain, |pairs| {
                let pairs = usize::from(pairs);
                let possible = (1..=most).contains(&pairs);
                if possible && let Err(error) = self.set_active(pairs) {
                    failed = Some(error);
                    return false;
                }
                possible
            })
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        if turn == Turn::Spent {
            self.control_waits = self.wakeup.raise();
        }
        // Their bells may have rung before.
        self.serve_all(memory, queues)
    }

    fn serve_all(
        &mut self,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        for index in 0..self.active {
            self.receive(index, memory, queues)?;
            self.transmit(index, memory, queues)?;
        }
        Ok(())
    }

    fn check_fault(&mut self) -> Result<(), DeviceError> {
        match self.fault.take() {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    /// struct virtio_net_config (virtio 1.2, 5.1.4).
    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        config[..6].copy_from_slice(&self.settings.mac);
        // 6..8 is the status, of a feature that is not offered.
        let pairs = u16::try_from(self.pairs.len()).unwrap_or(1);
        config[8..10].copy_from_slice(&pairs.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.to_le_bytes());
        config
    }
}

impl VirtioDevice for Net {
    fn name(&self) -> &'static str {
        self.settings.name
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_MTU
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_HOST_TSO6
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_TSO6;
        if self.pairs.len() > 1 {
            common | 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ
        } else {
            common
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let from = usize::try_from(offset).map_or(config.len(), |at| at.min(config.len()));
        let len = data.len().min(config.len() - from);
        data.fill(0);
        data[..len].copy_from_slice(&config[from..from + len]);
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
        let offloads = self.pairs[0].tap.set_offloads(features);
        // Until the driver says otherwise it uses one pair (5.1.5, 5.1.6.5.5).
        self.fault = offloads.and_then(|()| self.set_active(1)).err();
    }

    fn reset(&mut self) {
        self.features = 0;
        self.wakeup.clear();
        for pair in &mut self.pairs {
            pair.rx.reset();
            pair.tx = Tx::default();
        }
        self.fault = self.set_active(0).err();
    }

    fn queue_event(
        &mut self,
        index: u16,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        self.check_fault()?;
        let index = usize::from(index);
        if Some(index) == self.control_index() {
            self.control(index, memory, queues)?;
        } else if index / 2 >= self.active {
            return Ok(());
        } else if index % 2 == 0 {
            self.receive(index / 2, memory, queues)?;
        } else {
            self.transmit(index / 2, memory, queues)?;
        }
        Ok(self.watch()?)
    }

    fn host_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn host_event(
        &mut self,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        self.check_fault()?;
        self.wakeup.clear();
        for index in 0..self.active {
            if !self.pairs[index].rx.starved {
                self.receive(index, memory, queues)?;
            }
            // Cheap when there is nothing: a look at the ring's index.
            self.transmit(index, memory, queues)?;
        }
        if std::mem::take(&mut self.control_waits)
            && let Some(index) = self.control_index()
        {
            self.control(index, memory, queues)?;
        }
        Ok(self.watch()?)
    }
}
