//! TLS to the Resource API and to the CDN, with a private certificate authority.

use crate::world::pattern;
use crate::world::resource_api::ResourceApi;
use crate::world::s3::S3;
use crate::world::service::Service;
use crate::world::tls::Authority;

#[test]
fn a_private_authority_is_trusted_where_it_is_named_and_nowhere_else() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (api, s3) = (ResourceApi::start(), S3::start());
    let api_front = authority.front(&format!("127.0.0.1:{}", api.port()));
    let cdn_front = authority.front(s3.host_port());
    api.put_file("", "cdn.yaml", s3.cdn_yaml_at(&cdn_front.url));
    let folder = s3.new_bucket("models");
    let directory = tempfile::tempdir().unwrap();
    let pem = |name: &str, authority: &Authority| {
        let path = directory.path().join(name);
        std::fs::write(&path, &authority.pem).unwrap();
        path
    };

    let service = Service::builder()
        .env("RESOURCE_API_URL", &api_front.url)
        .env("CA_CERT_PATH", pem("ca.pem", &authority))
        .start();
    let reply = service.login();
    assert_eq!(reply.status, 200, "{}", reply.text());
    let bytes = pattern(3_000_000, 1);
    assert_eq!(service.upload(&folder, "m.bin", &bytes).status, 200);
    let big = service.cache_file(&folder, "m.bin");
    std::fs::remove_file(big).unwrap();
    assert!(service.load(&folder, "m.bin").body == bytes);

    let before = api.requests().len();
    for service in [
        Service::builder().env("RESOURCE_API_URL", &api_front.url),
        Service::builder().env("RESOURCE_API_URL", &api_front.url).env("CA_CERT_PATH", pem("stranger.pem", &stranger)),
    ] {
        let service = service.start();
        let reply = service.login();
        assert_eq!(reply.status, 401);
        assert!(reply.detail().contains("CA_CERT_PATH"), "{}", reply.detail());
    }
    assert_eq!(api.requests().len(), before, "credentials were sent to a server that is not trusted");
}
