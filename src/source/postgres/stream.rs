//! The bytes to and from a server: TCP, Unix socket, TLS.
//!
//! Reads and writes come back with `WouldBlock` after [`POLL`], so that whoever waits can look whether it should go on.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, StreamOwned};

use super::settings::{Host, Settings, SslMode};

/// How long one read or write waits before it returns `WouldBlock`.
pub const POLL: Duration = Duration::from_millis(200);

/// A connection to a server.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// Opens the socket, without TLS.
    pub fn open(settings: &Settings, deadline: Instant) -> io::Result<Stream> {
        match &settings.host {
            Host::Socket(folder) => {
                let stream = UnixStream::connect(folder.join(format!(".s.PGSQL.{}", settings.port)))?;
                stream.set_read_timeout(Some(POLL))?;
                stream.set_write_timeout(Some(POLL))?;
                Ok(Stream::Unix(stream))
            }
            Host::Name(name) => {
                let mut failure = None;
                for address in (name.as_str(), settings.port).to_socket_addrs()? {
                    let left = deadline.saturating_duration_since(Instant::now()).max(POLL);
                    match TcpStream::connect_timeout(&address, left) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            stream.set_read_timeout(Some(POLL))?;
                            stream.set_write_timeout(Some(POLL))?;
                            // A peer that vanished is noticed within minutes instead of never.
                            rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                            rustix::net::sockopt::set_tcp_keepidle(&stream, Duration::from_secs(60))?;
                            rustix::net::sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(10))?;
                            rustix::net::sockopt::set_tcp_keepcnt(&stream, 6)?;
                            return Ok(Stream::Tcp(stream));
                        }
                        Err(e) => failure = Some(e),
                    }
                }
                Err(failure.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
            }
        }
    }

    /// Starts TLS on a socket whose server has agreed to it.
    pub fn secure(self, settings: &Settings, deadline: Instant) -> io::Result<Stream> {
        let (Stream::Tcp(mut tcp), Host::Name(host)) = (self, &settings.host) else {
            return Err(io::Error::other("TLS over a Unix socket"));
        };
        let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
        let mut connection = ClientConnection::new(tls_config(settings)?, name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            match connection.complete_io(&mut tcp) {
                Ok(_) => {}
                Err(e) if waits(&e) && Instant::now() < deadline => {}
                Err(e) if waits(&e) => return Err(io::ErrorKind::TimedOut.into()),
                Err(e) => return Err(e),
            }
        }
        Ok(Stream::Tls(Box::new(StreamOwned::new(connection, tcp))))
    }

    /// Whether what is sent can be read on the way.
    pub fn is_private(&self) -> bool {
        !matches!(self, Stream::Tcp(_))
    }

    /// Whether bytes wait to be read; looks without waiting. With TLS always false.
    pub fn has_input(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        let mut byte = [0u8; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match self {
            Stream::Tls(_) => false,
            plain => recv(plain.plain_fd(), &mut byte, flags).is_ok_and(|(n, _)| n > 0),
        }
    }

    fn plain_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(s) => s.as_fd(),
            Stream::Unix(s) => s.as_fd(),
            Stream::Tls(s) => s.sock.as_fd(),
        }
    }
}

/// Whether an error only says that nothing happened within [`POLL`].
pub fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(s) => s.read(buf),
            Stream::Unix(s) => s.read(buf),
            Stream::Tls(s) => s.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(s) => s.write(buf),
            Stream::Unix(s) => s.write(buf),
            Stream::Tls(s) => s.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Tcp(s) => s.flush(),
            Stream::Unix(s) => s.flush(),
            Stream::Tls(s) => s.flush(),
        }
    }
}

/// What is checked of the server's certificate: libpq's sslmode.
fn tls_config(settings: &Settings) -> io::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous();
    // As libpq does: `require` with a root certificate at hand checks the chain.
    let check_name = settings.ssl_mode == SslMode::VerifyFull;
    let check_chain = check_name
        || settings.ssl_mode == SslMode::VerifyCa
        || (settings.ssl_mode == SslMode::Require && settings.ssl_root_cert.is_some());
    let verifier: Arc<dyn ServerCertVerifier> = if check_chain {
        let roots = Arc::new(roots(settings)?);
        let chain = WebPkiServerVerifier::builder_with_provider(roots, provider).build().map_err(io::Error::other)?;
        if check_name { chain } else { Arc::new(Lenient { chain: Some(chain), algorithms }) }
    } else {
        Arc::new(Lenient { chain: None, algorithms })
    };
    let mut config = builder.with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(Arc::new(config))
}

fn roots(settings: &Settings) -> io::Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    if let Some(file) = settings.ssl_root_cert.as_ref().filter(|file| file.as_os_str() != "system") {
        let named = |e: &dyn std::fmt::Display| io::Error::other(format!("root certificate {}: {e}", file.display()));
        for certificate in CertificateDer::pem_file_iter(file).map_err(|e| named(&e))? {
            store.add(certificate.map_err(|e| named(&e))?).map_err(|e| named(&e))?;
        }
        if store.is_empty() {
            return Err(named(&"it holds no certificate"));
        }
        return Ok(store);
    }
    let native = rustls_native_certs::load_native_certs();
    store.add_parsable_certificates(native.certs);
    if store.is_empty() {
        return Err(io::Error::other("the system has no root certificates; set PGSSLROOTCERT to the file of yours"));
    }
    Ok(store)
}

/// What to do about a certificate that was refused; `None` if it was not that which failed.
pub fn untrusted(error: &io::Error, settings: &Settings) -> Option<String> {
    use rustls::CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
    };
    let Some(rustls::Error::InvalidCertificate(reason)) = error.get_ref()?.downcast_ref() else { return None };
    Some(match reason {
        NotValidForName | NotValidForNameContext { .. } => {
            "it is for another name: connect by the one it bears, or set PGSSLMODE=verify-ca".to_owned()
        }
        Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. } => {
            "renew it, and see that the clocks of both hosts are right".to_owned()
        }
        _ => {
            let known = match &settings.ssl_root_cert {
                Some(file) if file.as_os_str() != "system" => format!("in {}", file.display()),
                _ => "the system trusts".to_owned(),
            };
            format!("no authority {known} has signed it: set PGSSLROOTCERT to the file of the one that has")
        }
    })
}

/// Checks less of a certificate than its name: for all but `verify-full`.
#[derive(Debug)]
struct Lenient {
    /// `verify-ca`: a chain to a root, whatever name the certificate bears. Without it, as for `prefer` and `require`, any
    /// certificate will do: TLS then hides the bytes from listeners, and proves nothing about the server.
    chain: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp, now) {
            Err(e) => {
                // The chain is checked before the name: if the name is what fails, the chain stands.
                let name_fails = verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name).is_err();
                let only_name = matches!(
                    e,
                    rustls::Error::InvalidCertificate(
                        rustls::CertificateError::NotValidForName
                            | rustls::CertificateError::NotValidForNameContext { .. }
                    )
                );
                if name_fails && only_name { Ok(ServerCertVerified::assertion()) } else { Err(e) }
            }
            fine => fine,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Where the server's own Unix sockets lie on Debian and Red Hat, and in PostgreSQL's own default.
pub fn default_socket_folder(port: u16) -> Option<PathBuf> {
    ["/var/run/postgresql", "/tmp"]
        .into_iter()
        .map(PathBuf::from)
        .find(|folder| folder.join(format!(".s.PGSQL.{port}")).exists())
}
