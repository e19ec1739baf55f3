//! The status page, in a browser, by keyboard.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::world::browser::{Browser, ENTER, SPACE, TAB};
use crate::world::process::write_program;
use crate::world::resource_api::{EMAIL, PASSWORD};
use crate::world::service::Service;
use crate::world::{World, protocol};

const FRAGMENT: &[u8] = b"the key fragment of the page";

/// Screenshots for people.
fn pictures() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn picture(browser: &Browser, name: &str) {
    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        browser.screenshot(&pictures().join(format!("{name}-{scheme}.png")));
    }
    browser.prefer("light");
}

/// A `docker` that takes what it is given in three steps, of which the second and the third wait for a file.
fn docker(directory: &Path) {
    let script = format!(
        "#!/bin/sh\ncd {}\nstep() {{ while [ ! -e $1 ]; do sleep 0.02; done; }}\ncase $1 in\n\
         load) head -c 6000000 >/dev/null; step go1; head -c 6000000 >/dev/null; step go2; cat >/dev/null; touch loaded;;\n\
         image) [ -e loaded ] && echo sha256:1 || {{ echo No such image >&2; exit 1; }};;\n*) echo 1;;\nesac\n",
        directory.display()
    );
    write_program(&directory.join("docker"), &script);
}

#[test]
fn the_page_logs_in_and_unlocks_by_keyboard_and_shows_every_state() {
    let Some(browser) = Browser::or_skip("the status page") else { return };
    let directory = tempfile::tempdir().unwrap();
    docker(directory.path());
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    let world = World::with(|builder| builder.env("PATH", path));
    let archive = crate::world::docker::saved_images(&["page:1.0"], 20_000_000, false);
    world.api.set_key_fragment(FRAGMENT);
    std::fs::write(world.service.images_path(), protocol::encrypt(&archive, FRAGMENT)).unwrap();
    world.upload("detector-v2.onnx", &[1; 3_000_000]);
    world.upload("<img src=x onerror=alert(1)>.bin", &[1; 70_000]);
    // After a restart nobody is logged in, and the cached models are listed.
    world.service.restart();

    browser.open(&world.service.url("/"));
    browser.wait("health.textContent === 'Healthy'");
    assert_eq!(browser.text("#account"), "Not logged in");
    assert_eq!(browser.text("#state"), "Locked");
    assert!(browser.text("#about").contains(concat!("Version ", env!("CARGO_PKG_VERSION"), " · up ")));
    // Markup in a name is shown as text.
    assert!(browser.text("#models").contains("<img src=x onerror=alert(1)>.bin"));
    assert!(browser.text("#models").contains("3.00 MB") && browser.text("#cache").starts_with("2 models · 3.06 MB"));
    picture(&browser, "idle");

    // Every control has a name for screen readers.
    assert_eq!(
        browser.script("return [...document.querySelectorAll('input')].every(input => input.labels.length)"),
        json!(true)
    );
    let live = "return ['health', 'account', 'state'].every(id => document.getElementById(id).role === 'status')";
    assert_eq!(browser.script(live), json!(true));

    // First with a wrong password.
    browser.tab_to("#login [name=email]");
    browser.keys(EMAIL);
    browser.keys(TAB);
    browser.keys("wrong-horse");
    browser.keys(TAB);
    browser.keys(SPACE);
    browser.wait("!document.querySelector('#login-error').hidden");
    assert!(browser.text("#login-error").contains("Passwords do not match"), "{}", browser.text("#login-error"));
    picture(&browser, "refused");
    // Back to the password field.
    browser.script("document.querySelector('#login [name=password]').select()");
    browser.keys(PASSWORD);
    browser.keys(ENTER);
    browser.wait("account.textContent === 'Logged in'");
    assert_eq!(browser.text("#user"), format!("{EMAIL} · Operator"));
    browser.wait("document.activeElement === account");
    let passwords = "return [...document.querySelectorAll('[type=password]')].map(input => input.value).join('')";
    assert_eq!(browser.script(passwords), json!(""));

    browser.tab_to("#unlock [name=email]");
    browser.keys(EMAIL);
    browser.keys(TAB);
    browser.keys(PASSWORD);
    browser.keys(TAB);
    browser.keys(SPACE);
    browser.wait("state.textContent === 'Loading images' && bar.value >= 6000000");
    let before = browser.script("return bar.value").as_f64().unwrap();
    assert!(before < 12_000_000.0 && browser.text("#amount").contains(" of 2"), "{before} {}", browser.text("#amount"));
    picture(&browser, "running");
    std::fs::write(directory.path().join("go1"), "").unwrap();
    browser.wait("bar.value >= 12000000");
    assert!(browser.script("return bar.value").as_f64().unwrap() < 19_000_000.0);
    std::fs::write(directory.path().join("go2"), "").unwrap();
    browser.wait("state.textContent === 'Ready'");
    assert_eq!(browser.script("return bar.hidden && error.hidden"), json!(true));
    picture(&browser, "ready");

    // The images have been removed, and the key fragment has changed.
    std::fs::remove_file(directory.path().join("loaded")).unwrap();
    world.api.set_key_fragment(b"another");
    browser.script("document.querySelector('#unlock-more summary').focus()");
    browser.keys(ENTER);
    browser.keys(TAB);
    browser.keys(EMAIL);
    browser.keys(TAB);
    browser.keys(PASSWORD);
    browser.keys(ENTER);
    browser.wait("state.textContent === 'Failed'");
    assert!(browser.text("#error-text").contains("the key fragment does not fit"), "{}", browser.text("#error-text"));
    picture(&browser, "error");

    // A narrow screen scrolls in one direction only.
    browser.devtools(
        "Emulation.setDeviceMetricsOverride",
        json!({"width": 340, "height": 800, "deviceScaleFactor": 1, "mobile": false}),
    );
    assert_eq!(browser.script("return document.documentElement.scrollWidth <= 340"), json!(true));
    picture(&browser, "narrow");
    browser.devtools("Emulation.clearDeviceMetricsOverride", json!({}));

    // The page asked nobody but the service, and nothing violated its Content-Security-Policy.
    let asked = browser.script("return performance.getEntriesByType('resource').map(entry => entry.name)");
    let own = world.service.url("/");
    assert!(asked.as_array().unwrap().iter().all(|url| url.as_str().unwrap().starts_with(&own)), "{asked}");
    let complaints = browser.complaints();
    assert!(complaints.iter().all(|words| words.contains("status of 401")), "{complaints:?}");

    world.service.kill();
    browser.wait("health.textContent === 'Not reachable'");
    world.service.restart();
    browser.wait("health.textContent === 'Healthy'");
}

#[test]
fn the_page_asks_for_the_client_token() {
    let Some(browser) = Browser::or_skip("the status page with a client token") else { return };
    let service = Service::builder().env("CLIENT_TOKEN", "open-sesame").start();
    browser.open(&service.url("/"));
    browser.wait("document.activeElement.id === 'token-input'");
    assert_eq!(browser.script("return document.querySelector('#box').hidden"), json!(true));
    picture(&browser, "token");
    browser.keys("open-barley");
    browser.keys(ENTER);
    browser.wait("document.querySelector('#token-error').innerText === 'The service does not accept this token.'");
    browser.wait("document.activeElement.id === 'token-input'");
    browser.keys("open-sesame");
    browser.keys(ENTER);
    browser.wait("health.textContent === 'Healthy' && document.querySelector('#token').hidden");
    assert_eq!(browser.text("#state"), "Locked");
    // The token is kept for the life of the tab, and nowhere else.
    browser.open(&service.url("/"));
    browser.wait("health.textContent === 'Healthy'");
    assert_eq!(browser.script("return localStorage.length + document.cookie.length"), json!(0));
    // The 401 for a wrong password must not ask for the token again.
    browser.tab_to("#login [name=email]");
    browser.keys("a@b.c");
    browser.keys(TAB);
    browser.keys("x");
    browser.keys(ENTER);
    browser.wait("!document.querySelector('#login-error').hidden");
    assert_eq!(browser.script("return document.querySelector('#token').hidden"), json!(true));
}

/// Text that somebody gets into the page must not run as a script.
#[test]
fn the_policy_stops_scripts_that_are_not_the_pages_own() {
    let Some(browser) = Browser::or_skip("the status page's policy") else { return };
    let service = Service::builder().start();
    browser.open(&service.url("/"));
    browser.script(
        "const script = document.createElement('script'); script.textContent = 'window.stolen = 1'; document.body.append(script);
         const image = document.createElement('div'); image.innerHTML = '<img src=data:, onerror=\"window.stolen = 1\">';
         document.body.append(image)",
    );
    browser.wait("health.textContent === 'Healthy'");
    assert_eq!(browser.script("return window.stolen"), Value::Null);
    assert!(browser.complaints().iter().any(|words| words.contains("Content Security Policy")));
    browser.open(&service.url("/docs"));
    assert!(browser.text("h1").starts_with("Loader API"));
    browser.prefer("dark");
    browser.screenshot(&pictures().join("docs-dark.png"));
    browser.prefer("light");
    browser.screenshot(&pictures().join("docs-light.png"));
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn the_page_needs_no_token_and_has_its_headers() {
    let service = Service::builder().env("CLIENT_TOKEN", "open-sesame").start();
    let reply = service.get("/");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = reply.header("content-security-policy").unwrap();
    assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
    assert!(reply.body.len() <= 13 * 1024);
}
