//! The service without a socket.

use super::*;
use crate::identity::Identity;
use axum::http::Method;
use tower::ServiceExt;
use vmm::Settings;
use vmm::config::InstanceId;

fn ask(method: Method, path: &str, body: &'static str, headers: &[(&'static str, &'static str)]) -> Response {
    let settings = Settings {
        id: InstanceId::default(),
        boot_timer: false,
        mmds_size_limit: 100,
        seccomp: vmm::confine::Seccomp::Off,
        clonable: false,
        pci: false,
        on_rename: |_| (),
    };
    let handle = vmm::launch(settings, |_| ()).unwrap();
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body)).unwrap();
    let router = router(App::new(handle, Identity::Mayfly, 1000, crate::confinement::ApiFences::none()));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(router.oneshot(request)).unwrap()
}

fn headers(response: &Response) -> Vec<(&str, &str)> {
    response.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
}

fn text(response: Response) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let bytes = runtime.block_on(to_bytes(response.into_body(), 1 << 20)).unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_success_without_data_is_truly_empty() {
    let done = ask(Method::PUT, "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128}"#, &[]);
    assert_eq!(done.status(), 204);
    // axum adds a Content-Length, which hyper leaves out of a 204; the tests over the socket see that it does.
    assert_eq!(headers(&done)[..2], [("server", "Firecracker API"), ("connection", "keep-alive")]);
    assert_eq!(done.extensions().get::<ReasonPhrase>().unwrap().as_bytes(), b"");
    assert_eq!(text(done), "");
}

#[test]
fn headers_come_in_the_contracts_order_and_deprecation_shows_on_failures_too() {
    let refused =
        ask(Method::PUT, "/machine-config", r#"{"vcpu_count":0,"mem_size_mib":128,"cpu_template":"None"}"#, &[]);
    assert_eq!(refused.status(), 400);
    let names: Vec<_> = headers(&refused).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["server", "connection", "deprecation", "content-type", "content-length"]);
    assert!(text(refused).starts_with(r#"{"fault_message":"Machine config error: The number of vCPUs "#));
}

#[test]
fn what_could_not_be_read_has_the_other_error_shape() {
    let refused = ask(Method::GET, "/", "", &[(REFUSED, "Invalid request. X"), ("connection", "close")]);
    assert_eq!(refused.status(), 400);
    assert_eq!(headers(&refused)[1], ("connection", "close"));
    assert_eq!(
        text(refused),
        "{ \"error\": \"Invalid request. X\nAll previous unanswered requests will be dropped.\" }"
    );
}

#[test]
fn a_query_is_part_of_the_path() {
    assert_eq!(ask(Method::GET, "/version", "", &[]).status(), 200);
    let asked = ask(Method::GET, "/version?x=1", "", &[]);
    assert_eq!(text(asked), r#"{"fault_message":"Invalid request method and/or path: GET version?x=1."}"#);
}

#[test]
fn a_chunked_body_over_the_limit_is_refused() {
    let body: &'static str = "x".repeat(1001).leak();
    let refused = ask(Method::PUT, "/actions", body, &[]);
    assert_eq!(refused.status(), 400);
    assert!(text(refused).starts_with("{ \"error\": \"Invalid request. Its body is too large"));
}
