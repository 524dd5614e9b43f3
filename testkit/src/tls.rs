//! Certificates for servers that speak TLS.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::error::{KitError, machine};

/// What a client of a server with TLS needs, as PEM.
#[derive(Clone)]
pub struct ClientTls {
    /// The authority of the server's certificate.
    pub ca: String,
    /// The client's certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// In a server's folder: its key and certificate.
pub(crate) const SERVER: &str = "server.pem";
/// In a server's folder: the authority of its certificate.
pub(crate) const AUTHORITY: &str = "ca.pem";

/// Puts a file into a server's folder.
pub(crate) fn write(folder: &Path, name: &str, text: &str) -> Result<(), KitError> {
    std::fs::write(folder.join(name), text).map_err(machine(name))
}

/// The server's key and certificate in one file, and what a client needs, all of one new authority.
pub(crate) fn certificates() -> Result<(String, ClientTls), KitError> {
    let made = || -> Result<(String, ClientTls), rcgen::Error> {
        let named = |names: Vec<String>, name: &str| {
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name.push(DnType::CommonName, name);
            Ok::<_, rcgen::Error>(params)
        };
        let mut params = named(Vec::new(), "authority of a test")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let server = named(vec!["127.0.0.1".to_owned()], "server")?.signed_by(&key, &issuer)?;
        let server = format!("{}{}", key.serialize_pem(), server.pem());
        let key = KeyPair::generate()?;
        let client = named(vec!["drover".to_owned()], "drover")?.signed_by(&key, &issuer)?;
        let client = ClientTls {
            ca: issuer.pem(),
            certificate: client.pem(),
            key: key.serialize_pem(),
        };
        Ok((server, client))
    };
    made().map_err(|error| machine("certificates of a test")(std::io::Error::other(error)))
}
