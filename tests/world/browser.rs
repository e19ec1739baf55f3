//! A headless Chromium, driven as a person would: by keys, over WebDriver (JSON over HTTP) through `chromedriver`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jwt_simple::reexports::ct_codecs::{Base64, Decoder};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client;

/// The limit for anything: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Keys without a character, by their WebDriver code points.
pub const TAB: &str = "\u{e004}";
/// Enter.
pub const ENTER: &str = "\u{e007}";
/// The space bar.
pub const SPACE: &str = " ";

/// One window, closed on drop.
pub struct Browser {
    driver: Child,
    session: String,
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser, or prints that the test is skipped if Chromium or its driver is not installed.
    pub fn or_skip(test: &str) -> Option<Self> {
        let found = |name: &str| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok();
        if let Some(missing) = ["chromium", "chromedriver"].into_iter().find(|name| !found(name)) {
            super::skip(test, &format!("{missing} is not installed; Debian's chromium and chromium-driver have it"));
            return None;
        }
        Some(Self::start())
    }

    fn start() -> Self {
        let mut driver = Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            line.unwrap()
                .split_once("started successfully on port ")
                .map(|(_, port)| port.trim_end_matches('.').to_owned())
        });
        let port: u16 = port.expect("chromedriver names its port").parse().unwrap();
        // Somebody must read its later output, or it would block.
        std::thread::spawn(move || lines.for_each(drop));
        let profile = tempfile::tempdir().unwrap();
        let data = format!("--user-data-dir={}", profile.path().display());
        let mut arguments = vec!["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"];
        arguments.extend(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        arguments.extend([
            "--window-size=1040,900",
            "--hide-scrollbars",
            "--no-proxy-server",
            "--disable-dev-shm-usage",
            &data,
        ]);
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let mut browser = Self { driver, session: format!("http://127.0.0.1:{port}/session"), _profile: profile };
        let id = browser.post("", capabilities)["sessionId"].as_str().unwrap().to_owned();
        browser.session = format!("{}/{id}", browser.session);
        browser
    }

    fn post(&self, command: &str, body: Value) -> Value {
        let request =
            http::Request::post(format!("{}{command}", self.session)).header("Content-Type", "application/json");
        let request = request.body(body.to_string()).unwrap();
        let reply = client::agent(PATIENCE * 2).run(request).unwrap();
        let status = reply.status();
        let json: Value =
            serde_json::from_reader(reply.into_body().into_with_config().limit(64 << 20).reader()).unwrap();
        assert!(status.is_success(), "{command}: {json}");
        json["value"].clone()
    }

    /// Opens an address and waits until it has been loaded.
    pub fn open(&self, url: &str) {
        self.post("/url", json!({ "url": url }));
    }

    /// Runs a function body in the page, and returns its result.
    pub fn script(&self, body: &str) -> Value {
        self.post("/execute/sync", json!({"script": body, "args": []}))
    }

    /// Waits until an expression is true in the page.
    pub fn wait(&self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.script(&format!("return !!({expression})")) != json!(true) {
            assert!(Instant::now() < deadline, "{expression} did not come true; the page says:\n{}", self.text("body"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The visible text of the first element that a selector finds.
    pub fn text(&self, selector: &str) -> String {
        self.script(&format!("return document.querySelector('{selector}').innerText")).as_str().unwrap().to_owned()
    }

    /// Presses and releases keys, one after the other.
    pub fn keys(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})])
            .collect();
        self.post("/actions", json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}));
    }

    /// Presses Tab until the element that a selector finds has the focus.
    pub fn tab_to(&self, selector: &str) {
        for _ in 0..20 {
            if self.script(&format!("return document.activeElement === document.querySelector('{selector}')"))
                == json!(true)
            {
                return;
            }
            self.keys(TAB);
        }
        panic!("20 Tabs do not reach {selector}");
    }

    /// Makes the page appear as to somebody who prefers `dark` or `light` pages.
    pub fn prefer(&self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", features);
    }

    /// Runs a command of the Chrome DevTools Protocol.
    pub fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", json!({"cmd": command, "params": parameters}))
    }

    /// The messages of the browser's console since the last call.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", json!({"type": "browser"}));
        log.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    /// A picture of the whole page.
    pub fn screenshot(&self, path: &Path) {
        let picture = self.devtools("Page.captureScreenshot", json!({"captureBeyondViewport": true}));
        let png = Base64::decode_to_vec(picture["data"].as_str().unwrap(), None).unwrap();
        std::fs::write(path, png).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // This ends Chromium, too; killing `chromedriver` would not.
        let _ = client::agent(Duration::from_secs(10)).delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
