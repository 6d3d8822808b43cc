//! The client of the crate vfio_user as C functions, for `client.py`. What fails is printed and told by the result: 0 for
//! success, -1 or a null pointer for failure. A client that was opened is to be closed, which ends its life.

use std::ffi::{c_char, c_int, CStr};
use std::fmt::Debug;
use std::path::Path;
use std::ptr::null_mut;
use std::slice;

use vfio_user::Client;

fn told<T, E: Debug>(result: Result<T, E>) -> Option<T> {
    result
        .map_err(|error| eprintln!("vfio_user: {error:?}"))
        .ok()
}

fn status<E: Debug>(result: Result<(), E>) -> c_int {
    told(result).map_or(-1, |()| 0)
}

#[no_mangle]
pub unsafe extern "C" fn client_open(path: *const c_char) -> *mut Client {
    let path = CStr::from_ptr(path).to_str().expect("a path in UTF-8");
    told(Client::new(Path::new(path))).map_or(null_mut(), |client| Box::into_raw(Box::new(client)))
}

#[no_mangle]
pub unsafe extern "C" fn client_close(client: *mut Client) -> c_int {
    status(Box::from_raw(client).shutdown())
}

#[no_mangle]
pub unsafe extern "C" fn client_region_size(client: &Client, region: u32) -> i64 {
    client.region(region).map_or(-1, |found| found.size as i64)
}

#[no_mangle]
pub unsafe extern "C" fn client_read(
    client: &mut Client,
    region: u32,
    offset: u64,
    data: *mut u8,
    size: usize,
) -> c_int {
    status(client.region_read(region, offset, slice::from_raw_parts_mut(data, size)))
}

#[no_mangle]
pub unsafe extern "C" fn client_write(
    client: &mut Client,
    region: u32,
    offset: u64,
    data: *const u8,
    size: usize,
) -> c_int {
    status(client.region_write(region, offset, slice::from_raw_parts(data, size)))
}

#[no_mangle]
pub unsafe extern "C" fn client_map(
    client: &mut Client,
    offset: u64,
    address: u64,
    size: u64,
    fd: c_int,
) -> c_int {
    status(client.dma_map(offset, address, size, fd))
}

#[no_mangle]
pub unsafe extern "C" fn client_unmap(client: &mut Client, address: u64, size: u64) -> c_int {
    status(client.dma_unmap(address, size))
}

#[no_mangle]
pub unsafe extern "C" fn client_reset(client: &mut Client) -> c_int {
    status(client.reset())
}

#[no_mangle]
pub unsafe extern "C" fn client_irqs(client: &mut Client, index: u32) -> i64 {
    told(client.get_irq_info(index)).map_or(-1, |info| info.count.into())
}

/// `flags` are those of VFIO_DEVICE_SET_IRQS, for `count` vectors from 0 on; eventfds come with some of them.
#[no_mangle]
pub unsafe extern "C" fn client_set_irqs(
    client: &mut Client,
    index: u32,
    flags: u32,
    count: u32,
    fds: *const c_int,
    number: usize,
) -> c_int {
    status(client.set_irqs(index, flags, 0, count, slice::from_raw_parts(fds, number)))
}
