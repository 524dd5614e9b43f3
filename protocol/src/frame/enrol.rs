//! Frames of the enrolment ALPN.

use flatbuffers::{ForwardsUOffset, UnionWIPOffset, Vector, WIPOffset};

use super::check::{self, Fault};
use super::codec::{self, Builder, Kind, agent_id, bytes, enum_map, group_id, string, uuid};
use super::lists::{List, read_addresses, write_addresses};
use super::{DecodeError, EncodeError};
use crate::enrol::{EnrolRefusal, EnrolReply, EnrolRequest, Enrolment};
use crate::generated::agent as fb;
use crate::ids::Slot;
use crate::limits::{
    CERTIFICATE_BYTES_MAX, CERTIFICATES_MAX, CSR_BYTES_MAX, DOMAIN_BYTES_MAX,
    ENROL_FRAME_BYTES_MAX, NAME_BYTES_MAX,
};

const REQUEST: Kind = Kind {
    name: "enrolment request",
    identifier: "DREQ",
    bytes_max: ENROL_FRAME_BYTES_MAX,
    tables_max: codec::TABLES_MAX,
};
const REPLY: Kind = Kind {
    name: "enrolment reply",
    identifier: "DREP",
    bytes_max: ENROL_FRAME_BYTES_MAX,
    tables_max: codec::TABLES_MAX,
};

enum_map!(write_refusal, read_refusal: EnrolRefusal => fb::EnrolRefusal {
    UnknownToken, UsedToken, ExpiredToken, BadRequest, Busy, Unavailable,
});

/// Appends the frame, size prefix first.
///
/// # Errors
/// [`EncodeError`] when a decoder would refuse it; `out` is then unchanged.
pub fn encode_enrol_request(request: &EnrolRequest, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    codec::encode(&REQUEST, out, |b| write_request(b, request))
}

/// Reads a frame without its size prefix.
///
/// # Errors
/// [`DecodeError`] says what is wrong with it.
pub fn decode_enrol_request(frame: &[u8]) -> Result<EnrolRequest, DecodeError> {
    let root = codec::root::<fb::EnrolRequest<'_>>(&REQUEST, frame)?;
    Ok(read_request(root)?)
}

/// Appends the frame, size prefix first.
///
/// # Errors
/// [`EncodeError`] when a decoder would refuse it; `out` is then unchanged.
pub fn encode_enrol_reply(reply: &EnrolReply, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    codec::encode(&REPLY, out, |b| write_reply(b, reply))
}

/// Reads a frame without its size prefix.
///
/// # Errors
/// [`DecodeError`] says what is wrong with it.
pub fn decode_enrol_reply(frame: &[u8]) -> Result<EnrolReply, DecodeError> {
    let root = codec::root::<fb::EnrolReply<'_>>(&REPLY, frame)?;
    Ok(read_reply(root)?)
}

pub(super) fn write_request(
    b: &mut Builder,
    request: &EnrolRequest,
) -> Result<WIPOffset<fb::EnrolRequest<'static>>, Fault> {
    check::size("enrol.csr", request.csr.len(), CSR_BYTES_MAX)?;
    let hostname = check::name("enrol.hostname", &request.hostname, NAME_BYTES_MAX)?;
    let software = check::name("enrol.software", &request.software, NAME_BYTES_MAX)?;
    let args = fb::EnrolRequestArgs {
        secret: Some(&fb::Bytes32(request.secret)),
        csr: Some(b.create_vector(&request.csr)),
        hostname: string(b, hostname),
        software: string(b, software),
    };
    Ok(fb::EnrolRequest::create(b, &args))
}

pub(super) fn read_request(request: fb::EnrolRequest<'_>) -> Result<EnrolRequest, Fault> {
    let csr = request.csr().bytes();
    check::size("enrol.csr", csr.len(), CSR_BYTES_MAX)?;
    let hostname = request.hostname().unwrap_or_default();
    let software = request.software().unwrap_or_default();
    Ok(EnrolRequest {
        secret: request.secret().0,
        csr: csr.to_vec(),
        hostname: check::name("enrol.hostname", hostname, NAME_BYTES_MAX)?.to_owned(),
        software: check::name("enrol.software", software, NAME_BYTES_MAX)?.to_owned(),
    })
}

pub(super) fn write_reply(
    b: &mut Builder,
    reply: &EnrolReply,
) -> Result<WIPOffset<fb::EnrolReply<'static>>, Fault> {
    let (body_type, body): (_, WIPOffset<UnionWIPOffset>) = match reply {
        EnrolReply::Enrolled(enrolment) => {
            let enrolled = write_enrolled(b, enrolment)?;
            (fb::EnrolBody::Enrolled, enrolled.as_union_value())
        }
        EnrolReply::Refused(refusal) => {
            let reason = write_refusal(*refusal);
            let refused = fb::EnrolRefused::create(b, &fb::EnrolRefusedArgs { reason });
            (fb::EnrolBody::EnrolRefused, refused.as_union_value())
        }
    };
    let args = fb::EnrolReplyArgs {
        body_type,
        body: Some(body),
    };
    Ok(fb::EnrolReply::create(b, &args))
}

pub(super) fn read_reply(reply: fb::EnrolReply<'_>) -> Result<EnrolReply, Fault> {
    let missing = || Fault::missing("body");
    Ok(match reply.body_type() {
        fb::EnrolBody::Enrolled => {
            let enrolled = reply.body_as_enrolled().ok_or_else(missing)?;
            EnrolReply::Enrolled(Box::new(read_enrolled(enrolled)?))
        }
        fb::EnrolBody::EnrolRefused => {
            let refused = reply.body_as_enrol_refused().ok_or_else(missing)?;
            let refusal = read_refusal(refused.reason());
            EnrolReply::Refused(refusal.ok_or(Fault::unknown("enrol.reason"))?)
        }
        _ => return Err(Fault::unknown("body")),
    })
}

fn write_enrolled(
    b: &mut Builder,
    enrolment: &Enrolment,
) -> Result<WIPOffset<fb::Enrolled<'static>>, Fault> {
    let domain = check::name("enrol.domain", &enrolment.domain, DOMAIN_BYTES_MAX)?;
    let args = fb::EnrolledArgs {
        agent: Some(&uuid(enrolment.agent.to_bytes())),
        group: Some(&uuid(enrolment.group.to_bytes())),
        slot: enrolment.slot.0,
        domain: Some(b.create_string(domain)),
        chain: write_certificates(b, "enrol.chain", &enrolment.chain)?,
        roots: write_certificates(b, "enrol.roots", &enrolment.roots)?,
        addresses: write_addresses(b, &enrolment.addresses)?,
    };
    Ok(fb::Enrolled::create(b, &args))
}

fn read_enrolled(enrolled: fb::Enrolled<'_>) -> Result<Enrolment, Fault> {
    let domain = check::name("enrol.domain", enrolled.domain(), DOMAIN_BYTES_MAX)?;
    Ok(Enrolment {
        agent: agent_id(enrolled.agent()),
        group: group_id(enrolled.group()),
        slot: Slot(enrolled.slot()),
        domain: domain.to_owned(),
        chain: read_certificates("enrol.chain", enrolled.chain())?,
        roots: read_certificates("enrol.roots", enrolled.roots())?,
        addresses: read_addresses(enrolled.addresses())?,
    })
}

fn write_certificates(
    b: &mut Builder,
    field: &'static str,
    certificates: &[Vec<u8>],
) -> Result<List<fb::Certificate<'static>>, Fault> {
    check::size(field, certificates.len(), CERTIFICATES_MAX)?;
    let mut offsets = Vec::with_capacity(certificates.len());
    for der in certificates {
        check::size(field, der.len(), CERTIFICATE_BYTES_MAX)?;
        let der = bytes(b, der).ok_or(Fault::missing(field))?;
        offsets.push(fb::Certificate::create(
            b,
            &fb::CertificateArgs { der: Some(der) },
        ));
    }
    Ok(Some(b.create_vector(&offsets)))
}

fn read_certificates(
    field: &'static str,
    list: Vector<'_, ForwardsUOffset<fb::Certificate<'_>>>,
) -> Result<Vec<Vec<u8>>, Fault> {
    check::size(field, list.len(), CERTIFICATES_MAX)?;
    list.iter()
        .map(|certificate| {
            let der = certificate.der().bytes();
            check::size(field, der.len(), CERTIFICATE_BYTES_MAX)?;
            if der.is_empty() {
                return Err(Fault::missing(field));
            }
            Ok(der.to_vec())
        })
        .collect()
}
