//! The HTTP edge, asked over real connections, with a fake node behind it.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test has a clock, and stops at what it cannot do"
)]
#![allow(unreachable_pub, reason = "one test program in several files")]

mod fake;

mod bad_input;
mod connections;
mod jobs;
mod looking;
mod streams;

use serde_json::Value;

/// The status and the JSON body.
async fn told(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

impl fake::World {
    async fn get(&self, path: &str) -> (u16, Value) {
        told(self.client.get(self.url(path))).await
    }

    async fn submit(&self, spec: Value) -> (u16, Value) {
        told(self.client.post(self.url("/v1/jobs")).json(&spec)).await
    }

    /// Submits a job and returns its id.
    async fn submitted(&self, spec: Value) -> flockwork::model::id::JobId {
        let (status, body) = self.submit(spec).await;
        assert_eq!(status, 201, "{body}");
        body["id"].as_str().unwrap().parse().unwrap()
    }
}
