//! Socket options that no safe crate offers.

#![expect(unsafe_code, reason = "setsockopt with structures of the kernel's")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// One instruction of a classic BPF program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::runtime) struct Instruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub operand: u32,
}

fn set<T: Copy>(socket: impl AsFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: pointer and length describe one live `T`; the kernel only reads it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            len,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn switch(socket: impl AsFd, level: i32, name: i32, on: bool) -> io::Result<()> {
    set(socket, level, name, &i32::from(on))
}

/// Asks for the destination address of every datagram (`IP_PKTINFO`, `IPV6_RECVPKTINFO`).
pub(in crate::runtime) fn receive_packet_info(socket: impl AsFd, v6: bool) -> io::Result<()> {
    if v6 {
        switch(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, true)
    } else {
        switch(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, true)
    }
}

/// Forbids fragments of what we send, whatever the kernel believes about the path's MTU: QUIC
/// measures it itself (RFC 9000 §14).
pub(in crate::runtime) fn forbid_fragments(socket: impl AsFd, v6: bool) -> io::Result<()> {
    let probe = libc::IP_PMTUDISC_PROBE;
    if v6 {
        set(
            &socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            &libc::IPV6_PMTUDISC_PROBE,
        )?;
        switch(&socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, true)?;
    }
    // Also on a v6 socket, for v4 peers of a dual-stack one.
    set(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &probe)
}

/// Has every datagram arrive by itself, also when a device or the sender merged several.
pub(in crate::runtime) fn forbid_merging(socket: impl AsFd) -> io::Result<()> {
    switch(socket, libc::SOL_UDP, libc::UDP_GRO, false)
}

/// Has `program` choose the socket of the reuseport group that `socket` belongs to.
pub(in crate::runtime) fn attach_reuseport_filter(
    socket: impl AsFd,
    program: &[Instruction],
) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|one| libc::sock_filter {
            code: one.code,
            jt: one.jump_true,
            jf: one.jump_false,
            k: one.operand,
        })
        .collect();
    let len = u16::try_from(filter.len()).map_err(io::Error::other)?;
    // `filter` lives until the kernel has copied the program inside the call.
    let program = libc::sock_fprog {
        len,
        filter: filter.as_mut_ptr(),
    };
    set(
        socket,
        libc::SOL_SOCKET,
        libc::SO_ATTACH_REUSEPORT_CBPF,
        &program,
    )
}

/// Datagrams that the kernel dropped at this socket because its receive buffer was full; 0 where
/// the kernel does not tell.
pub(in crate::runtime) fn kernel_drops(socket: impl AsFd) -> u64 {
    /// `SK_MEMINFO_DROPS`, the last of nine words of `SO_MEMINFO`.
    const DROPS: usize = 8;
    const SO_MEMINFO: i32 = 55;
    let mut words = [0u32; DROPS + 1];
    let mut len = libc::socklen_t::try_from(size_of_val(&words)).unwrap_or_default();
    // SAFETY: pointer and length describe `words`, which the kernel fills with plain integers.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            words.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if done == 0 {
        u64::from(words[DROPS])
    } else {
        0
    }
}
