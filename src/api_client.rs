//! The client of the Resource API and the CDN: login, load and upload.

mod background_login;
mod big_sink;
mod held_versions;
mod keep;
mod keep_list;
mod load;
mod load_error;
mod login;
mod offline;
mod outage;
mod range_reader;
mod range_request;
mod resource_api;
mod session;
mod token;
mod upload;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use zeroize::Zeroizing;

use crate::cdn_manager::{CdnConfig, CdnManager};
use crate::configuration::Configuration;
use crate::constants::{CDN_CONFIG_FILE, MAX_JSON_BYTES};
use crate::credentials::Credentials;
use crate::hardware_service::{Hardware, NO_SERIAL};
use crate::http_client::HttpClient;
use crate::keyed_lock::KeyedLock;
use crate::manifest::ManifestKeys;
use crate::model_cache::{CacheLimits, ModelCache, OfflineParts, RemoveError};
use crate::names::ModelName;
use crate::security::AesKey;
use crate::threads::lock;
use crate::user::User;

use self::held_versions::HeldVersions;
use self::keep_list::KeepList;
use self::login::{BackgroundLogin, CurrentLogin, Login};
use self::outage::Outage;
use self::resource_api::ResourceApi;
use self::session::Session;

pub use self::background_login::CredentialsSource;
pub use self::load::Plaintext;
pub use self::load_error::LoadError;
pub use self::login::LoginError;
pub use self::range_request::{ByteRange, RangeRequest};
pub use self::resource_api::ApiError;
pub use self::token::{Token, TokenReader};
pub use self::upload::{ReceivedUpload, Upload, UploadError};

/// The client of this process. It is created at the start; the credentials come with the first login.
pub struct ApiClient {
    api: Arc<ResourceApi>,
    http: HttpClient,
    cdn_config_path: Option<PathBuf>,
    resource_key: AesKey,
    manifest_keys: Arc<ManifestKeys>,
    /// Whether uploads set the plain key.
    old_readers: bool,
    cache: ModelCache,
    offline_parts: Arc<OfflineParts>,
    /// One upload of a model at a time takes the steps: two at once could end with the small part of one and the plain key of
    /// the other.
    uploads: KeyedLock<ModelName, ()>,
    login: CurrentLogin,
    background_login: Mutex<BackgroundLogin>,
    keep: KeepList,
    held: HeldVersions,
}

impl ApiClient {
    /// A client that is not logged in.
    pub fn new(configuration: &Configuration) -> Result<Self, String> {
        let http = HttpClient::new(configuration.ca_cert_path.as_deref())?;
        let tokens = TokenReader::new(configuration.jwt_public_key_path.as_deref())?;
        let salts = configuration.salts();
        let resource_key = AesKey::of_resources(&salts);
        let manifest_keys = Arc::new(ManifestKeys::new(
            &salts,
            configuration.signing_key_path.as_deref(),
            configuration.trusted_keys_path.as_deref(),
            configuration.require_manifest,
        )?);
        let cache = ModelCache::open(
            &configuration.model_cache_dir,
            Arc::clone(&manifest_keys),
            CacheLimits {
                max_bytes: configuration.cache_max_bytes,
                min_free_bytes: configuration.cache_min_free_bytes,
                download_rate: configuration.download_rate,
                keep: &configuration.keep,
            },
        )?;
        let offline_parts = Arc::new(OfflineParts::open(&configuration.model_cache_dir, configuration.offline_limit));
        offline_parts.start_removing_expired();
        Ok(Self {
            api: Arc::new(ResourceApi {
                http: http.clone(),
                base: configuration.resource_api_url.clone(),
                tokens,
                hardware: hardware(configuration),
                salts,
                outage: Outage::default(),
            }),
            http,
            cdn_config_path: configuration.cdn_config_path.clone(),
            resource_key,
            manifest_keys,
            old_readers: configuration.old_readers,
            cache,
            offline_parts,
            uploads: KeyedLock::default(),
            login: CurrentLogin::default(),
            background_login: Mutex::default(),
            keep: KeepList::new(&configuration.keep),
            held: HeldVersions::default(),
        })
    }

    /// Who is logged in.
    pub fn user(&self) -> Option<User> {
        self.current().map(|login| login.session.user())
    }

    /// Proves the credentials and loads the CDN configuration, then replaces the previous login. While the Resource API is away, a
    /// stored small part can prove the credentials.
    pub fn login(&self, credentials: Credentials) -> Result<(), LoginError> {
        self.login.replace(self.prove(credentials)?);
        Ok(())
    }

    fn prove(&self, credentials: Credentials) -> Result<Login, LoginError> {
        match self.open_session(&credentials) {
            Ok(session) => {
                let login = Login::new(session);
                self.cdn(&login)?;
                Ok(login)
            }
            Err(error) if error.is_away() => self.login_offline(credentials, error),
            Err(error) => Err(error.into()),
        }
    }

    /// Logs in for an unlock, which needs no CDN: its configuration is fetched when a load needs it.
    pub fn login_for_unlock(&self, credentials: Credentials) -> Result<(), ApiError> {
        let session = self.open_session(&credentials)?;
        self.login.replace(Login::new(session));
        Ok(())
    }

    /// The bytes from which the archive's key is made.
    pub fn key_fragment(&self) -> Result<Zeroizing<Vec<u8>>, ApiError> {
        let login = self.current().ok_or(ApiError::Unauthorized(http::StatusCode::UNAUTHORIZED))?;
        login.session.call(ResourceApi::key_fragment)
    }

    /// The model cache.
    pub fn cache(&self) -> &ModelCache {
        &self.cache
    }

    /// Removes a model from the cache.
    pub fn remove_from_cache(&self, model: &ModelName) -> Result<(), RemoveError> {
        self.held.let_go(model);
        self.cache.remove(model)
    }

    fn current(&self) -> Option<Arc<Login>> {
        self.login.get()
    }

    /// The CDN of this login. Its configuration is fetched once, and again when the CDN refuses its keys.
    fn cdn(&self, login: &Login) -> Result<Arc<CdnManager>, LoginError> {
        let mut cdn = lock(&login.cdn);
        if let Some(cdn) = &*cdn {
            return Ok(Arc::clone(cdn));
        }
        let read = self.cdn_config(&login.session);
        let config = read()?;
        if config.is_open_to_listeners() {
            log::warn!(
                "the CDN is used without TLS ({}); others on the network can see which models are loaded",
                config.endpoint
            );
        }
        let renew = Box::new(move || {
            log::info!("the CDN refuses the access key, so the CDN configuration is fetched again");
            read().inspect_err(|error| log::warn!("{error}")).ok()
        });
        let manager = Arc::new(CdnManager::with_renewal(self.http.clone(), &config, renew));
        *cdn = Some(Arc::clone(&manager));
        Ok(manager)
    }

    /// Reads the CDN configuration each time that it is called.
    fn cdn_config(&self, session: &Arc<Session>) -> impl Fn() -> Result<CdnConfig, LoginError> + Send + Sync + use<> {
        let (session, path) = (Arc::clone(session), self.cdn_config_path.clone());
        move || {
            let yaml = match &path {
                Some(path) => read_config(path),
                None => session.fetch("", CDN_CONFIG_FILE).map(|file| file.plain).map_err(|error| error.to_string()),
            };
            CdnConfig::from_yaml(&yaml.map_err(LoginError::CdnConfigUnavailable)?).map_err(LoginError::CdnConfig)
        }
    }
}

/// The hardware string of this box, or `HARDWARE_ID` if it is set.
fn hardware(configuration: &Configuration) -> String {
    configuration.hardware_id.clone().unwrap_or_else(|| {
        let hardware = Hardware::read(Path::new("/"));
        if !hardware.has_serial() {
            log::warn!("{NO_SERIAL}");
        }
        hardware.string()
    })
}

fn read_config(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let unreadable = |error| format!("CDN_CONFIG_PATH names {}: {error}", path.display());
    let mut yaml = Zeroizing::new(Vec::new());
    File::open(path).and_then(|file| file.take(MAX_JSON_BYTES).read_to_end(&mut yaml)).map_err(unreadable)?;
    Ok(yaml)
}
