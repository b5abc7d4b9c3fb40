//! How the store is reached: endpoint, region, credentials, times.

use std::time::Duration;

use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::meta::region::RegionProviderChain;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents,
    SharedCredentialsProvider, SharedHttpClient,
};
use aws_smithy_http_client::ConnectorBuilder;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use zeroize::Zeroizing;

use super::ATTEMPTS_MAX;

/// How to reach the store. What is not set here is looked for where the AWS tools look: `AWS_*` variables, profile files,
/// and, unless an endpoint is set, the services that a machine in the cloud offers.
#[derive(Clone, Default)]
pub struct S3Options {
    /// `http://host:port`; none means AWS. With an endpoint, buckets are addressed by path.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub keys: Option<S3Keys>,
    pub times: S3Times,
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct S3Times {
    /// For a connection.
    pub connect: Duration,
    /// For the answer to one attempt, besides the time its body takes to send.
    pub attempt: Duration,
    /// While nothing moves on a stream.
    pub stall: Duration,
    /// Between two attempts: at most `backoff` after the first, twice as long after each further one, up to `backoff_max`.
    pub backoff: Duration,
    pub backoff_max: Duration,
}

impl Default for S3Times {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            attempt: Duration::from_secs(60),
            stall: Duration::from_secs(20),
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(10),
        }
    }
}

/// Credentials. Wiped from memory when dropped, and never shown.
#[derive(Clone)]
pub struct S3Keys {
    pub access_key_id: String,
    pub secret_access_key: Zeroizing<String>,
    pub session_token: Option<Zeroizing<String>>,
}

impl S3Options {
    /// Takes from the environment, as `env` gives it: `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `AWS_REGION`,
    /// `AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`; where no endpoint is set
    /// so, `MINIO_ENDPOINT`; where no keys are set so, and no profile is chosen, `MINIO_ACCESS_KEY`, `MINIO_SECRET_KEY`.
    pub fn from_env(env: &dyn Fn(&str) -> Option<String>) -> Self {
        let var = |name: &str| env(name).filter(|value| !value.is_empty());
        let endpoint = var("AWS_ENDPOINT_URL_S3")
            .or_else(|| var("AWS_ENDPOINT_URL"))
            .or_else(|| var("MINIO_ENDPOINT").map(|given| with_scheme(&given)));
        let keys = |id: &str, secret: &str, token: &str| {
            Some(S3Keys {
                access_key_id: var(id)?,
                secret_access_key: Zeroizing::new(var(secret)?),
                session_token: var(token).map(Zeroizing::new),
            })
        };
        let keys = keys("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN").or_else(|| {
            if var("AWS_PROFILE").is_some() { None } else { keys("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY", "") }
        });
        let region = var("AWS_REGION").or_else(|| var("AWS_DEFAULT_REGION"));
        Self { endpoint, region, keys, times: S3Times::default() }
    }
}

/// MinIO's own clients take `host:port`, and a local MinIO seldom has a certificate.
fn with_scheme(endpoint: &str) -> String {
    match endpoint {
        _ if endpoint.contains("://") => endpoint.to_owned(),
        _ if endpoint.ends_with(":443") => format!("https://{endpoint}"),
        _ => format!("http://{endpoint}"),
    }
}

/// HTTP as the SDK would make it, but with the TLS that PostgreSQL's connections use as well: one cryptographic library.
fn http_client() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new().build_with_connector_fn(|settings, components| {
        let mut connector = ConnectorBuilder::default().tls_provider(tls::Provider::Rustls(CryptoMode::Ring));
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.set_proxy_config(Some(ProxyConfig::from_env()));
        connector.build()
    })
}

/// Reads the settings that `options` leaves open, from the environment and profile files.
pub(super) async fn load(options: &S3Options) -> aws_config::SdkConfig {
    let regions = RegionProviderChain::first_try(options.region.clone().map(Region::new))
        .or_else(aws_config::environment::region::EnvironmentVariableRegionProvider::new())
        .or_else(aws_config::profile::region::ProfileFileRegionProvider::new())
        .or_else(Region::new("us-east-1"));
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http_client())
        .region(regions)
        .retry_config(
            RetryConfig::standard()
                .with_max_attempts(ATTEMPTS_MAX)
                .with_initial_backoff(options.times.backoff)
                .with_max_backoff(options.times.backoff_max),
        )
        .timeout_config(TimeoutConfig::builder().connect_timeout(options.times.connect).build())
        // A user's file may ask for less.
        .request_checksum_calculation(RequestChecksumCalculation::WhenSupported)
        .response_checksum_validation(ResponseChecksumValidation::WhenSupported);
    if let Some(endpoint) = &options.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(keys) = &options.keys {
        loader = loader.credentials_provider(Credentials::new(
            keys.access_key_id.clone(),
            keys.secret_access_key.to_string(),
            keys.session_token.as_ref().map(|token| token.to_string()),
            None,
            "vault",
        ));
    } else if options.endpoint.is_some() {
        // Not the chain that ends by asking a cloud's metadata service: this is not that cloud.
        loader = loader.credentials_provider(SharedCredentialsProvider::new(
            CredentialsProviderChain::first_try(
                "environment",
                aws_config::environment::credentials::EnvironmentVariableCredentialsProvider::new(),
            )
            .or_else("profile", aws_config::profile::ProfileFileCredentialsProvider::builder().build()),
        ));
    }
    loader.load().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(set: &[(&str, &str)]) -> S3Options {
        S3Options::from_env(&|name| set.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_aws_variables_come_before_those_of_minio() {
        let all = [
            ("AWS_ENDPOINT_URL_S3", "http://s3"),
            ("AWS_ENDPOINT_URL", "http://any"),
            ("MINIO_ENDPOINT", "minio:9000"),
            ("AWS_ACCESS_KEY_ID", "aws"),
            ("AWS_SECRET_ACCESS_KEY", "aws secret"),
            ("AWS_SESSION_TOKEN", "token"),
            ("MINIO_ACCESS_KEY", "minio"),
            ("MINIO_SECRET_KEY", "minio secret"),
            ("AWS_REGION", "eu-central-1"),
        ];
        let key = |options: &S3Options| options.keys.as_ref().map(|keys| keys.access_key_id.clone());
        let chosen = options(&all);
        assert_eq!(chosen.endpoint.as_deref(), Some("http://s3"));
        assert_eq!(chosen.region.as_deref(), Some("eu-central-1"));
        assert_eq!(key(&chosen).as_deref(), Some("aws"));
        assert_eq!(chosen.keys.unwrap().session_token.unwrap().as_str(), "token");

        let minio = options(&all[2..3]);
        assert_eq!(minio.endpoint.as_deref(), Some("http://minio:9000"), "MinIO's clients take no scheme");
        assert!(minio.keys.is_none());
        let minio = options(&[all[2], all[6], all[7]]);
        assert_eq!(key(&minio).as_deref(), Some("minio"));
        let half = options(&[("AWS_ACCESS_KEY_ID", "aws"), ("AWS_SECRET_ACCESS_KEY", ""), all[6], all[7]]);
        assert_eq!(key(&half).as_deref(), Some("minio"), "an empty variable is not set");
        assert!(key(&options(&[("AWS_PROFILE", "work"), all[6], all[7]])).is_none(), "a chosen profile wins");
    }
}
