// One table of kubeconfigs: what the API server sees of each, or why it is rejected. kubeconfig_test.ts proves it here,
// and e2e/kubeconfigs.ts compares it with kubectl.
import { generateKeyPairSync } from "node:crypto"
import { chmodSync, mkdirSync, mkdtempSync, writeFileSync } from "node:fs"
import http from "node:http"
import type { AddressInfo } from "node:net"
import { dirname, join } from "node:path"
import type { Authority, Certificate } from "../apiserver/http.ts"
import { ada, base64, bob, connectProxy, endings, folder, foreign, identityOf, serve, trusted } from "./https_server.ts"

/** What a case can use: a folder of its own, servers and certificates. */
export interface Place {
  folder: string
  /** An HTTPS server of `authority`, whose certificate names 127.0.0.1, localhost and api.demo.test. */
  server: string
  /** The same behind a CONNECT proxy, and by plain HTTP. */
  proxy: string
  plain: string
  authority: Authority
  foreign: Authority
  ada: Certificate
  bob: Certificate
}
/** What the server sees. */
export interface Seen {
  authorization?: string
  /** The common name of the client certificate. */
  subject?: string
  impersonate?: Record<string, string>
}
export interface Case {
  name: string
  /** Writes the files; returns KUBECONFIG. */
  make(place: Place): string
  /** What the server sees, or what the error says. */
  right: Seen | RegExp
  /** What kubectl does otherwise, on purpose. */
  unlike?: string
}

export const V1 = "client.authentication.k8s.io/v1"

export function write(place: Place, name: string, content: string | Uint8Array | object): string {
  const path = join(place.folder, name)
  mkdirSync(dirname(path), { recursive: true })
  const isRaw = typeof content === "string" || content instanceof Uint8Array
  writeFileSync(path, isRaw ? content : JSON.stringify(content, null, 2))
  return path
}

const utf8 = (text: string | string[] | undefined) => text && Buffer.from(String(text), "latin1").toString()

/** Starts the servers of a case; `seen` grows with each call. */
export async function startPlace(): Promise<{ place: Place; seen: Seen[] }> {
  const seen: Seen[] = []
  const note = (headers: http.IncomingHttpHeaders, subject?: string) => {
    const authorization = utf8(headers.authorization)
    const impersonate = Object.entries(headers)
      .filter(([name]) => name.startsWith("impersonate-"))
      .map(([name, value]) => [name.replace("impersonate-", ""), utf8(value) ?? ""])
    seen.push({
      ...(authorization && { authorization }),
      ...(subject && { subject }),
      ...(impersonate.length > 0 && { impersonate: Object.fromEntries(impersonate) }),
    })
    return { gitVersion: "v1.35.1" }
  }
  const identity = await identityOf(trusted, "127.0.0.1", "localhost", "api.demo.test")
  const { address: server } = await serve(({ headers, subject }) => note(headers, subject), { identity })
  const web = http.createServer((request, response) => response.end(JSON.stringify(note(request.headers))))
  await new Promise<void>((done) => web.listen(0, "127.0.0.1", done))
  endings.push(() => web.close())
  const plain = `http://127.0.0.1:${(web.address() as AddressInfo).port}`
  const { address: proxy } = await connectProxy()
  const certificates = { authority: trusted, foreign, ada, bob }
  return { seen, place: { folder: mkdtempSync(join(folder, "case-")), server, plain, proxy, ...certificates } }
}

type Parts = { cluster?: object; user?: object; context?: object; more?: object }
/** A kubeconfig as JSON, which is YAML. */
export const config = (
  { server, authority }: Place,
  { cluster = {}, user = {}, context = {}, more = {} }: Parts = {},
) => ({
  apiVersion: "v1",
  kind: "Config",
  "current-context": "here",
  clusters: [{ name: "home", cluster: { server, "certificate-authority-data": base64(authority.cert), ...cluster } }],
  contexts: [{ name: "here", context: { cluster: "home", user: "me", ...context } }],
  users: [{ name: "me", user }],
  ...more,
})
/** A kubeconfig by hand, with `user` as the lines of the user, indented by six. */
const yaml = ({ server, authority }: Place, user: string, rest = "") => `apiVersion: v1
kind: Config
current-context: here
clusters:
- name: home
  cluster:
    server: ${server}
    certificate-authority-data: ${base64(authority.cert)}
contexts:
- name: here
  context: {cluster: home, user: me}
${rest}users:
- name: me
  user:
${user}
`
const TOKEN: Seen = { authorization: "Bearer t0ken" }
const ADA: Seen = { subject: "ada" }
const certOf = ({ ada }: Place) => ({ "client-certificate-data": base64(ada.cert), "client-key-data": base64(ada.key) })

/** A case whose kubeconfig is `config` with these parts. */
const by = (name: string, parts: Parts | ((place: Place) => Parts), right: Case["right"], unlike?: string): Case => ({
  name,
  right,
  make: (place) => write(place, "config", config(place, typeof parts === "function" ? parts(place) : parts)),
  ...(unlike && { unlike }),
})
/** A case with this text. */
const of = (
  name: string,
  text: (place: Place) => string | Uint8Array,
  right: Case["right"],
  unlike?: string,
): Case => ({
  name,
  right,
  make: (place) => write(place, "config", text(place)),
  ...(unlike && { unlike }),
})
/** An exec entry that runs a script, and what the script prints by default. */
const exec = (script: string, more: object = {}) => ({
  exec: { apiVersion: V1, interactiveMode: "Never", command: "sh", args: ["-c", script], ...more },
})
const gives = (status: object, version = V1) =>
  `printf '%s' '${JSON.stringify({ apiVersion: version, kind: "ExecCredential", status })}'`
const P1 = gives({ token: "P1" })
const jwt = (exp: number) =>
  `${[{ alg: "none" }, { exp }].map((part) => Buffer.from(JSON.stringify(part)).toString("base64url")).join(".")}.c2ln`
const later = jwt(4_000_000_000)
const oidc = (more: object) => ({
  "auth-provider": { name: "oidc", config: { "idp-issuer-url": "https://127.0.0.1:1", "client-id": "x", ...more } },
})
const utf16 = (text: string, isBig: boolean) => {
  const bytes = Buffer.from(`\ufeff${text}`, "utf16le")
  return isBig ? bytes.swap16() : bytes
}
const ec = (type: "sec1" | "pkcs8", more: object = {}) =>
  generateKeyPairSync("ec", {
    namedCurve: "P-256",
    publicKeyEncoding: { type: "spki", format: "pem" },
    privateKeyEncoding: { type, format: "pem", ...more } as { type: "sec1"; format: "pem" },
  }).privateKey

const tokens: Case[] = [
  by("a token", { user: { token: "t0ken" } }, TOKEN),
  by("no user fields at all", {}, {}, "it asks for a user name"),
  by("a context without a user", { context: { user: undefined } }, {}, "it asks for a user name"),
  by("a tokenFile with a newline", (p) => ({ user: { tokenFile: write(p, "token", "t0ken\n") } }), TOKEN),
  by("a relative tokenFile", (p) => ({ user: { tokenFile: write(p, "token", "t0ken") && "token" } }), TOKEN),
  by("a tokenFile before a token", (p) => ({ user: { token: "old", tokenFile: write(p, "token", "t0ken") } }), TOKEN),
  by("H13 a token beside a tokenFile that is missing", { user: { token: "t0ken", tokenFile: "missing" } }, TOKEN),
  by(
    "H13 a token beside a tokenFile that is empty",
    (p) => ({ user: { token: "t0ken", tokenFile: write(p, "token", "") } }),
    TOKEN,
  ),
  by(
    "J10 an empty tokenFile",
    (p) => ({ user: { tokenFile: write(p, "token", " \n") } }),
    /tokenFile: .*\/token is empty/,
  ),
  by(
    "a missing tokenFile",
    { user: { tokenFile: "missing" } },
    /tokenFile names a file in .* that cannot be read: ENOENT/,
  ),
  by(
    "J10 a tokenFile with a byte order mark",
    (p) => ({ user: { tokenFile: write(p, "token", "\ufefft0ken") } }),
    TOKEN,
    "it sends the mark",
  ),
  by("a token of non-ASCII characters", { user: { token: "tökén☂" } }, { authorization: "Bearer tökén☂" }),
  by("a token with a newline inside", { user: { token: "t0k\nen" } }, /header Authorization has control characters/),
  by("a number as token", { user: { token: 123456 } }, /user me: token must be a string/),
  by(
    "a token that is null",
    { user: { token: null, username: "u", password: "p" } },
    { authorization: `Basic ${base64("u:p")}` },
  ),
  by(
    "a user name and a password",
    { user: { username: "u", password: "p:ö" } },
    { authorization: `Basic ${base64("u:p:ö")}` },
  ),
  by("H13 a user name without a password", { user: { username: "u" } }, { authorization: `Basic ${base64("u:")}` }),
  by("a password without a user name", { user: { password: "p" } }, /user me: password needs username/),
  by(
    "H13 a token and a password together",
    { user: { token: "t0ken", username: "u", password: "p" } },
    /user me: (token|tokenFile) excludes username/,
  ),
  by(
    "a tokenFile and a password together",
    (p) => ({ user: { tokenFile: write(p, "token", "x"), username: "u" } }),
    /user me: (token|tokenFile) excludes username/,
  ),
]
const impersonations: Case[] = [
  by("somebody to impersonate", { user: { token: "t0ken", as: "jörg" } }, { ...TOKEN, impersonate: { user: "jörg" } }),
  by(
    "a uid and a group to impersonate",
    { user: { token: "t0ken", as: "eve", "as-uid": "7", "as-groups": ["g, h"] } },
    {
      ...TOKEN,
      impersonate: { user: "eve", uid: "7", group: "g, h" },
    },
  ),
  by(
    "extra to impersonate",
    { user: { token: "t0ken", as: "eve", "as-user-extra": { "a/b": ["x"] } } },
    {
      ...TOKEN,
      impersonate: { user: "eve", "extra-a%2fb": "x" },
    },
  ),
  by(
    "two groups to impersonate",
    { user: { token: "t0ken", as: "eve", "as-groups": ["g", "h"] } },
    /as-groups must be a list of one string/,
  ),
  by(
    "two values of extra to impersonate",
    { user: { token: "t0ken", as: "eve", "as-user-extra": { a: ["x", "y"] } } },
    /as-user-extra must be a mapping with lists of one/,
  ),
  by("groups without somebody to impersonate", { user: { token: "t0ken", "as-groups": ["g"] } }, /as-groups needs as/),
  by("a group that is no list", { user: { token: "t0ken", as: "eve", "as-groups": "g" } }, /as-groups must be a list/),
]
const unknown: Case[] = [
  by(
    "an unknown field of the user",
    { user: { token: "t0ken", impersonateGroups: ["x"] } },
    /user me: the field impersonateGroups is not supported/,
  ),
  by(
    "a misspelled field of the user",
    { user: { token: "t0ken", "client-certficate": "x" } },
    /the field client-certficate is not supported/,
  ),
  by(
    "an unknown field of the cluster",
    { cluster: { "tls-min-version": "1" }, user: { token: "t0ken" } },
    /cluster home: the field tls-min-version is not supported/,
  ),
  by(
    "an unknown field of the context",
    { context: { Namespace: "x" }, user: { token: "t0ken" } },
    /context here: the field \(not shown\) is not supported/,
  ),
  by(
    "an unknown field of exec",
    { user: exec(P1, { timeout: 3 }) },
    /user me: exec: the field timeout is not supported/,
  ),
  by(
    "unknown fields where nothing is used",
    {
      user: { token: "t0ken" },
      more: { preferences: { x: 1 }, extensions: [{ name: "x", extension: {} }], colors: true },
    },
    TOKEN,
  ),
  by(
    "extensions everywhere",
    {
      cluster: { extensions: [{ name: "x", extension: 1 }] },
      context: { extensions: [] },
      user: { token: "t0ken", extensions: null },
    },
    TOKEN,
  ),
  by(
    "a token beside the user it should stand in",
    { more: { users: [{ name: "me", user: null, token: "t0ken" }] } },
    /^(?!.*t0ken).*user me: the field token is not supported beside user$/,
  ),
  by("a user that is a list", { more: { users: [{ name: "me", user: ["token"] }] } }, /user me must be a mapping/),
  by(
    "a flag that is a string",
    { cluster: { "insecure-skip-tls-verify": "true" }, user: { token: "t0ken" } },
    /insecure-skip-tls-verify must be true or false/,
  ),
]
const certificates: Case[] = [
  by("a client certificate as data", (p) => ({ user: certOf(p) }), ADA),
  by(
    "a client certificate in relative files",
    (p) => {
      write(p, "a/crt", p.ada.cert)
      write(p, "a/key", p.ada.key)
      return { user: { "client-certificate": "a/crt", "client-key": "a/key" } }
    },
    ADA,
  ),
  by(
    "a client certificate and its key in one file",
    (p) => {
      const both = write(p, "both", `${p.ada.key}\n${p.ada.cert}`)
      return { user: { "client-certificate": both, "client-key": both } }
    },
    ADA,
  ),
  by("a client certificate and a token", (p) => ({ user: { ...certOf(p), token: "t0ken" } }), { ...ADA, ...TOKEN }),
  by(
    "a certificate as file and as data",
    (p) => ({ user: { ...certOf(p), "client-certificate": write(p, "crt", p.bob.cert) } }),
    /client-certificate-data excludes client-certificate/,
  ),
  by(
    "a key as file and as data",
    (p) => ({ user: { ...certOf(p), "client-key": write(p, "key", p.bob.key) } }),
    /client-key-data excludes client-key/,
  ),
  by(
    "a CA as file and as data",
    (p) => ({ cluster: { "certificate-authority": write(p, "ca", p.authority.cert) }, user: { token: "t0ken" } }),
    /certificate-authority-data excludes certificate-authority/,
  ),
  by(
    "a certificate without its key",
    (p) => ({ user: { "client-certificate-data": base64(p.ada.cert) } }),
    /user me: client-certificate-data needs client-key or client-key-data/,
  ),
  by(
    "a key without its certificate",
    (p) => ({ user: { token: "t0ken", "client-key-data": base64(p.ada.key) } }),
    /user me: client-key-data needs client-certificate or/,
  ),
  by(
    "H12 the key of another certificate",
    (p) => ({ user: { ...certOf(p), "client-key-data": base64(p.bob.key) } }),
    /KUBECONFIG .*: client-certificate and client-key must be a pair, .*KEY_VALUES_MISMATCH/,
  ),
  by(
    "H12 an encrypted key",
    (p) => ({
      user: { ...certOf(p), "client-key-data": base64(ec("pkcs8", { cipher: "aes-256-cbc", passphrase: "x" })) },
    }),
    /client-certificate and client-key must be a pair, without passphrase/,
  ),
  by(
    "H12 a key that is none",
    (p) => ({ user: { ...certOf(p), "client-key-data": base64("not a key") } }),
    /client-key-data must be the base64 of PEM/,
  ),
  by(
    "H12 a certificate that is none",
    (p) => ({ user: { ...certOf(p), "client-certificate-data": base64("not a certificate") } }),
    /client-certificate-data must be the base64 of PEM/,
  ),
  by(
    "H12 a CA that is no base64",
    { cluster: { "certificate-authority-data": "@@@" }, user: { token: "t0ken" } },
    /certificate-authority-data must be the base64 of PEM/,
  ),
  by(
    "H12 a CA as PEM in place of base64",
    (p) => ({ cluster: { "certificate-authority-data": p.authority.cert }, user: { token: "t0ken" } }),
    /certificate-authority-data must be the base64 of PEM/,
  ),
  by(
    "H12 a CA as DER",
    (p) => ({
      cluster: { "certificate-authority-data": p.authority.cert.replace(/-----.*-----|\s/g, "") },
      user: { token: "t0ken" },
    }),
    /certificate-authority-data must be the base64 of PEM/,
  ),
  by(
    "H12 a CA file that is missing",
    { cluster: { "certificate-authority-data": null, "certificate-authority": "missing" }, user: { token: "t0ken" } },
    /certificate-authority names a file in .* that cannot be read: ENOENT/,
  ),
  by(
    "H12 a CA file without a certificate",
    (p) => ({
      cluster: { "certificate-authority-data": null, "certificate-authority": write(p, "ca", "hello") },
      user: { token: "t0ken" },
    }),
    /certificate-authority must be in PEM form/,
  ),
  by(
    "a CA after a block that is no certificate",
    (p) => ({
      cluster: {
        "certificate-authority-data": base64(
          `-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n${p.authority.cert}`,
        ),
      },
      user: { token: "t0ken" },
    }),
    TOKEN,
  ),
  by(
    "a CA bundle with comments and CRLF",
    (p) => ({
      cluster: {
        "certificate-authority-data": base64(
          `# one\r\n${p.foreign.cert}\n# two\n${p.authority.cert}`.replace(/\r?\n/g, "\r\n"),
        ),
      },
      user: { token: "t0ken" },
    }),
    TOKEN,
  ),
  by(
    "base64 in lines",
    (p) => ({
      cluster: { "certificate-authority-data": base64(p.authority.cert).replace(/.{64}/g, "$&\n") },
      user: { token: "t0ken" },
    }),
    TOKEN,
  ),
  by(
    "the CA of somebody else",
    (p) => ({ cluster: { "certificate-authority-data": base64(p.foreign.cert) }, user: { token: "t0ken" } }),
    /certificate/,
  ),
  by(
    "no CA, and a server that nobody knows",
    { cluster: { "certificate-authority-data": null }, user: { token: "t0ken" } },
    /certificate/,
  ),
  by(
    "no check of the server",
    { cluster: { "certificate-authority-data": null, "insecure-skip-tls-verify": true }, user: { token: "t0ken" } },
    TOKEN,
  ),
  by(
    "no check of the server beside a CA",
    { cluster: { "insecure-skip-tls-verify": true }, user: { token: "t0ken" } },
    /certificate-authority-data excludes .* insecure-skip-tls-verify/,
  ),
  by(
    "a name to check the server by",
    { cluster: { "tls-server-name": "api.demo.test" }, user: { token: "t0ken" } },
    TOKEN,
  ),
  by(
    "a name that the server has not",
    { cluster: { "tls-server-name": "other.demo.test" }, user: { token: "t0ken" } },
    /altname|does not match|CERT/i,
  ),
]
const servers: Case[] = [
  by("a slash after the server", (p) => ({ cluster: { server: `${p.server}/` }, user: { token: "t0ken" } }), TOKEN),
  by(
    "a path in the server",
    (p) => ({ cluster: { server: `${p.server}/k8s/clusters/c-1/` }, user: { token: "t0ken" } }),
    TOKEN,
  ),
  by(
    "a server in capitals",
    (p) => ({ cluster: { server: p.server.replace("https", "HTTPS") }, user: { token: "t0ken" } }),
    TOKEN,
  ),
  by(
    "a server without a scheme",
    (p) => ({ cluster: { server: p.server.replace("https://", "") }, user: { token: "t0ken" } }),
    /server must be an https:.. URL/,
  ),
  by(
    "a server with a user name",
    (p) => ({ cluster: { server: p.server.replace("://", "://a:b@") } }),
    /server must be an https:.. URL without user name/,
  ),
  by("no server", { cluster: { server: "" }, user: { token: "t0ken" } }, /cluster home: server is missing/),
  by(
    "http on this machine sends no credentials",
    (p) => ({ cluster: { server: p.plain, "certificate-authority-data": null }, user: { token: "t0ken" } }),
    {},
  ),
  by(
    "http to another machine",
    { cluster: { server: "http://demo.invalid:8080" }, user: { token: "t0ken" } },
    /http:\/\/ only for this machine/,
  ),
  by(
    "http to another machine whose name begins like an address of this one",
    { cluster: { server: "http://127.0.0.1.demo.invalid:8080" }, user: { token: "t0ken" } },
    /http:\/\/ only for this machine/,
  ),
  by("a proxy", (p) => ({ cluster: { "proxy-url": p.proxy }, user: { token: "t0ken" } }), TOKEN),
  by(
    "a proxy in capitals",
    (p) => ({ cluster: { "proxy-url": p.proxy.replace("http", "HTTP") }, user: { token: "t0ken" } }),
    TOKEN,
  ),
  by(
    "a proxy without a scheme",
    (p) => ({ cluster: { "proxy-url": p.proxy.replace("http://", "") }, user: { token: "t0ken" } }),
    /proxy-url must be a URL that begins with http/,
  ),
  by("an empty proxy", { cluster: { "proxy-url": "" }, user: { token: "t0ken" } }, TOKEN),
  by(
    "a socks proxy",
    { cluster: { "proxy-url": "socks5://s3cr3t:x@127.0.0.1:1080" }, user: { token: "t0ken" } },
    /cluster home: proxy-url must be a URL that begins with http/,
  ),
  by("compression disabled", { cluster: { "disable-compression": true }, user: { token: "t0ken" } }, TOKEN),
]
/** What stands in KUBERNETES_EXEC_INFO if the plugin wants to know its cluster. */
const told = [
  '"interactive":false',
  '"server":"https://',
  '"tls-server-name":"api.demo.test"',
  '"certificate-authority-data":"LS0t',
  '"config":{"shoot":"demo"}',
]
const plugins: Case[] = [
  by("a plugin", { user: exec(P1) }, { authorization: "Bearer P1" }),
  by(
    "a plugin of v1beta1",
    { user: exec(gives({ token: "P1" }, `${V1}beta1`), { apiVersion: `${V1}beta1`, interactiveMode: undefined }) },
    { authorization: "Bearer P1" },
  ),
  by(
    "a plugin without apiVersion and interactiveMode",
    { user: exec(P1, { apiVersion: undefined, interactiveMode: undefined }) },
    { authorization: "Bearer P1" },
    "it wants both",
  ),
  by("a plugin of v1alpha1", { user: exec(P1, { apiVersion: `${V1}alpha1` }) }, /apiVersion must be/),
  by(
    "a plugin that answers in another version",
    { user: exec(gives({ token: "P1" }, `${V1}beta1`)) },
    /its answer must have apiVersion/,
  ),
  by(
    "a plugin with a client certificate",
    ({ ada }) => ({ user: exec(gives({ clientCertificateData: ada.cert, clientKeyData: ada.key })) }),
    ADA,
  ),
  by(
    "a plugin with a certificate and a token",
    ({ ada }) => ({ user: exec(gives({ token: "P1", clientCertificateData: ada.cert, clientKeyData: ada.key })) }),
    { ...ADA, authorization: "Bearer P1" },
  ),
  by(
    "a plugin with a certificate without its key",
    ({ ada }) => ({ user: exec(gives({ token: "P1", clientCertificateData: ada.cert })) }),
    /must be an ExecCredential with a token, or a client certificate and its key/,
  ),
  by("H13 a token beside a plugin", { user: { token: "t0ken", ...exec(P1) } }, TOKEN),
  by(
    "H13 a user name beside a plugin",
    { user: { username: "u", ...exec(P1) } },
    { authorization: `Basic ${base64("u:")}` },
  ),
  by("H13 a client certificate beside a plugin", (p) => ({ user: { ...certOf(p), ...exec(P1) } }), ADA),
  by(
    "a plugin with environment",
    {
      user: exec(`echo '{"apiVersion":"${V1}","kind":"ExecCredential","status":{"token":"'$MINE'"}}'`, {
        env: [{ name: "MINE", value: "P1" }],
      }),
    },
    { authorization: "Bearer P1" },
  ),
  by(
    "a plugin beside its kubeconfig",
    (p) => {
      chmodSync(write(p, "bin/plugin", `#!/bin/sh\n${P1}\n`), 0o755)
      return { user: exec("", { command: "./bin/plugin", args: null }) }
    },
    { authorization: "Bearer P1" },
  ),
  by(
    "H03 a plugin that is told of its cluster",
    {
      cluster: {
        "tls-server-name": "api.demo.test",
        extensions: [{ name: "client.authentication.k8s.io/exec", extension: { shoot: "demo" } }],
      },
      user: exec(
        `for part in ${told.map((part) => `'${part}'`).join(" ")}; do
          case "$KUBERNETES_EXEC_INFO" in *"$part"*) ;; *) echo "no $part" >&2; exit 1; esac
        done; ${P1}`,
        { provideClusterInfo: true },
      ),
    },
    { authorization: "Bearer P1" },
  ),
  by(
    "a plugin that fails",
    { user: exec("echo no >&2; exit 3") },
    /credential plugin sh failed: exit code 3; it said: no/,
  ),
  by(
    "H15 a plugin that is not installed",
    { user: exec("", { command: "no-such-plugin", installHint: "get it with apt" }) },
    /credential plugin no-such-plugin is not installed or not in PATH. get it with apt/,
  ),
  by("a plugin that prints no JSON", { user: exec("echo hello") }, /its output must be an ExecCredential/),
  by(
    "a plugin that wants a terminal",
    { user: exec(P1, { interactiveMode: "Always" }) },
    /interactiveMode must be Never or IfAvailable/,
  ),
  by("exec that is an empty mapping", { user: { exec: {} } }, /exec: command is missing/),
  by("numbers as arguments of a plugin", { user: exec(P1, { args: [1] }) }, /exec: args: each must be a string/),
  by(
    "environment of a plugin without a name",
    { user: exec(P1, { env: [{ value: "x" }] }) },
    /user me: exec: env: each: name is missing/,
  ),
  by("exec without a command", { user: exec("", { command: "" }) }, /user me: exec: command is missing/),
  by(
    "exec and auth-provider",
    { user: { ...exec(P1), ...oidc({ "id-token": later }) } },
    /exec excludes auth-provider/,
  ),
]
const providers: Case[] = [
  by("a valid id-token", { user: oidc({ "id-token": later }) }, { authorization: `Bearer ${later}` }),
  by("a valid id-token beside a token", { user: { token: "t0ken", ...oidc({ "id-token": later }) } }, TOKEN),
  by("an expired id-token", { user: oidc({ "id-token": jwt(1), "refresh-token": "x" }) }, /id-token has expired/),
  by(
    "an id-token without an issuer",
    { user: oidc({ "id-token": later, "idp-issuer-url": "" }) },
    /user me: auth-provider: config must be a mapping with idp-issuer-url/,
  ),
  by(
    "the provider gcp",
    { user: { "auth-provider": { name: "gcp", config: { "access-token": "x" } } } },
    /auth-provider: name must be oidc/,
  ),
  by(
    "an unknown provider beside a token",
    { user: { token: "t0ken", "auth-provider": { name: "acme" } } },
    /auth-provider: name must be oidc/,
  ),
]
const T = "    token: t0ken"
const texts: Case[] = [
  of("YAML by hand", (p) => yaml(p, T), TOKEN),
  of(
    "H05 a second document",
    (p) => `${yaml(p, T)}---\n${yaml(p, "    token: other").replace("here", "there")}`,
    TOKEN,
  ),
  of("H05 a last line of ---", (p) => `${yaml(p, T)}---\n`, TOKEN),
  of("H05 a second document that is broken", (p) => `${yaml(p, T)}---\n}}} {{{\n`, TOKEN),
  of("the end of a document", (p) => `${yaml(p, T)}...\n`, TOKEN),
  of("comments and --- before", (p) => `# mine\n\n---\n${yaml(p, T)}`, TOKEN),
  of("--- twice before", (p) => `---\n---\n${yaml(p, T)}`, /no such file, or it is empty/),
  of("a directive before", (p) => `%YAML 1.1\n---\n${yaml(p, T)}`, TOKEN),
  of("a merge key before", (p) => yaml(p, "    <<: *x\n    token: t0ken", "x: &x {token: other, as: eve}\n"), {
    ...TOKEN,
    impersonate: { user: "eve" },
  }),
  of("a merge key after", (p) => yaml(p, "    token: other\n    <<: *x", "x: &x {token: t0ken}\n"), TOKEN),
  of("a merge of several", (p) => yaml(p, "    <<: [*x, *z]", "x: &x {token: t0ken}\nz: &z {token: other}\n"), TOKEN),
  of(
    "a merged entry",
    (p) =>
      `${yaml(p, "    <<: *u")}- &v {name: other, user: &u {token: t0ken}}\n`
        .replace("  user:\n    <<: *u\n", "")
        .replace("- name: me\n", "")
        .concat("- <<: *v\n  name: me\n"),
    TOKEN,
  ),
  of("an anchor", (p) => yaml(p, "    token: &t t0ken\n    as: *t"), { ...TOKEN, impersonate: { user: "t0ken" } }),
  of(
    "a merge key in quotes",
    (p) => yaml(p, '    "<<": *x', "x: &x {token: t0ken}\n"),
    /the field \(not shown\) is not supported/,
  ),
  of("an anchor that contains itself", (p) => yaml(p, T, "x: &x {y: *x}\n"), /as YAML: .*call stack/),
  of("an unknown anchor", (p) => yaml(p, "    token: *s3cr3t"), /as YAML: Unresolved alias \(line 15/),
  of(
    "yes for a flag",
    (p) => yaml(p, T).replace("    server:", "    insecure-skip-tls-verify: yes\n    server:"),
    /insecure-skip-tls-verify must be true or false/,
  ),
  of("H17 !!binary", (p) => yaml(p, `    token: !!binary ${base64("t0ken")}`), TOKEN),
  of("H17 !!binary in quotes", (p) => yaml(p, `    token: !!binary "${base64("t0ken")}"`), TOKEN),
  of(
    "H17 !!binary as a block",
    (p) =>
      yaml(
        p,
        "    client-certificate-data: !!binary |\n" +
          `${base64(base64(p.ada.cert)).replace(/.{1,60}/g, "      $&\n")}    client-key-data: ${base64(p.ada.key)}`,
      ),
    ADA,
  ),
  of("a token as a block", (p) => yaml(p, "    token: >-\n      t0ken"), TOKEN),
  of("a quoted token", (p) => yaml(p, '    token: "t0\\u006ben"'), TOKEN),
  of("a token twice", (p) => yaml(p, "    token: other\n    token: t0ken"), TOKEN),
  of("H17 UTF-16, little end first", (p) => utf16(yaml(p, T), false), TOKEN),
  of("H17 UTF-16, big end first", (p) => utf16(yaml(p, T), true), TOKEN),
  of("UTF-8 with a byte order mark", (p) => `\ufeff${yaml(p, T)}`, TOKEN),
  of("CRLF", (p) => yaml(p, T).replaceAll("\n", "\r\n"), TOKEN),
  of("JSON with tabs", (p) => JSON.stringify(config(p, { user: { token: "t0ken" } }), null, "\t"), TOKEN),
  of(
    "bytes that are no text",
    (p) => Buffer.from(yaml(p, "    token: \xff\xfe"), "latin1"),
    /as YAML: The encoded data was not valid for encoding utf-8/,
  ),
  of(
    "a wrong indentation",
    (p) => yaml(p, "    token: >-\n      s3cr3t\n   as: x"),
    /as YAML: .* \(line 17, column 4\)/,
  ),
  of("a tab as indentation", (p) => yaml(p, "\ttoken: t0ken"), /as YAML: .*[Tt]ab.* \(line 1[45], column \d\)/),
  of("a list", () => "- current-context: here\n", /as a kubeconfig: it must be a mapping/),
  of("a word", () => "hello", /as a kubeconfig: it must be a mapping/),
  of(
    "another kind",
    (p) => yaml(p, T).replace("kind: Config", "kind: Secret"),
    /as a kubeconfig: it must be a mapping/,
  ),
  of(
    "another version",
    (p) => yaml(p, T).replace("apiVersion: v1", "apiVersion: v2"),
    /as a kubeconfig: it must be a mapping/,
  ),
  of("nothing", () => "", /no such file, or it is empty/),
  of(
    "users that are a mapping",
    (p) => yaml(p, T).replace("- name: me\n  user:", "  me:"),
    /there is no user me; the file has none/,
  ),
]
/** Where Go is stricter than URL.parse() and base64 in JavaScript: what a copied value brings along. */
const spoil = (text: string): [how: string, spoiled: string][] =>
  [" ", "\t", "\ufeff", "\u00a0", "\f"].flatMap((blank): [string, string][] => {
    const half = text.length >> 1
    const name = JSON.stringify(blank).replace(/[^ -~]/g, (c) => `U+${c.charCodeAt(0).toString(16)}`)
    return [
      [`${name} before`, `${blank}${text}`],
      [`${name} inside`, `${text.slice(0, half)}${blank}${text.slice(half)}`],
      [`${name} after`, `${text}${blank}`],
    ]
  })
const spoiled = (field: string, parts: (place: Place, spoil: (text: string) => string) => Parts, right: RegExp) =>
  spoil("").map(([how], i) => by(`${field} with ${how}`, (p) => parts(p, (text) => spoil(text)[i]?.[1] ?? ""), right))
const user = { token: "t0ken" }
const server = (name: string, change: (server: string) => string) =>
  by(name, (p) => ({ cluster: { server: change(p.server) }, user }), /server must be an https/)
const ca = (name: string, change: (data: string) => string, right: Case["right"] = /-data must be the base64 of PEM/) =>
  by(name, (p) => ({ cluster: { "certificate-authority-data": change(base64(p.authority.cert)) }, user }), right)
const pem = (name: string, change: (pem: string) => string) =>
  ca(name, (data) => base64(change(Buffer.from(data, "base64").toString())))
const strict: Case[] = [
  ...spoiled("a server", (p, spoil) => ({ cluster: { server: spoil(p.server) }, user }), /server must be an https/),
  ...spoiled("a proxy", (p, spoil) => ({ cluster: { "proxy-url": spoil(p.proxy) }, user }), /proxy-url must be a URL/),
  ...spoiled(
    "a CA",
    (p, spoil) => ({ cluster: { "certificate-authority-data": spoil(base64(p.authority.cert)) }, user }),
    /certificate-authority-data must be the base64 of PEM/,
  ),
  ...spoiled(
    "a client certificate",
    (p, spoil) => ({ user: { ...certOf(p), "client-certificate-data": spoil(base64(p.ada.cert)) } }),
    /client-certificate-data must be the base64 of PEM/,
  ),
  ...spoiled(
    "a client key",
    (p, spoil) => ({ user: { ...certOf(p), "client-key-data": spoil(base64(p.ada.key)) } }),
    /client-key-data must be the base64 of PEM/,
  ),
  server("a server with a newline after it", (server) => `${server}\n`),
  server("a server with a backslash", (server) => `${server}\\a`),
  server("a server with three slashes", (server) => server.replace("//", "///")),
  server("a server with no slashes", (server) => server.replace("//", "")),
  server("a server with half an address", (server) => server.replace("127.0.0.1", "127.1")),
  server("a server with a hexadecimal address", (server) => server.replace("127.0.0.1", "0x7f000001")),
  server("a server with an escaped address", (server) => server.replace("127.0.0.1", "127.0.0.%31")),
  server("a server with a broken escape", (server) => `${server}/%zz`),
  ca("a CA in lines of CRLF", (data) => data.replace(/.{64}/g, "$&\r\n"), TOKEN),
  ca("a CA whose base64 is cut", (data) => data.replace(/.=*$/, "")),
  ca("a CA with too much padding", (data) => `${data}====`),
  ca("a CA in the alphabet for URLs", (data) => `-_${data.slice(2)}`),
  pem("an indented CA", (pem) => pem.replace(/^/gm, " ")),
  pem("a CA after a byte order mark", (pem) => `\ufeff${pem}`),
  pem("a CA whose last line goes on", (pem) => `${pem.trim()}.`),
  by("a token with blanks before", { user: { token: "  t0ken" } }, { authorization: "Bearer   t0ken" }),
  by("a token with blanks after", { user: { token: "t0ken  " } }, TOKEN),
  by("a token with a newline after", { user: { token: "t0ken\n" } }, /header Authorization has control characters/),
  by("a plugin's token with a newline", { user: exec(gives({ token: "P1\n" })) }, /header Authorization has control/),
  by("a name of the server in Unicode", { cluster: { "tls-server-name": "api.demo.test\u200b" }, user }, /in ASCII/),
  of("a line break of YAML 1.1", (p) => yaml(p, '    {username: "a\u0085b"}'), /as YAML: the character U\+0085/),
  of(
    "blanks in !!binary",
    (p) => yaml(p, `    token: !!binary "${base64("t0ken").slice(0, 4)} ${base64("t0ken").slice(4)}"`),
    /as YAML: it is no base64/,
  ),
]
const lists: Case[] = [
  by("no current-context", { more: { "current-context": "" } }, /current-context is missing/),
  by(
    "J11 a context that is not there",
    { more: { "current-context": "prod" } },
    /there is no context prod; the file has here/,
  ),
  by(
    "J11 a cluster that is not there",
    { context: { cluster: "prod-x" }, user: { token: "t0ken" } },
    /there is no cluster prod-x; the file has home/,
  ),
  by("J11 a user that is not there", { context: { user: "you" } }, /there is no user you; the file has me/),
  by(
    "a user twice",
    {
      more: {
        users: [
          { name: "me", user: { token: "a" } },
          { name: "me", user: { token: "b" } },
        ],
      },
    },
    /has two entries for user me/,
  ),
  by(
    "unused entries of any kind",
    {
      user: { token: "t0ken" },
      more: {
        contexts: [
          { name: "here", context: { cluster: "home", user: "me" } },
          { name: "old", context: { foo: "x" } },
          7,
          null,
        ],
      },
    },
    TOKEN,
    "it refuses wrong types in unused entries",
  ),
  {
    name: "a list of files, the first to name a thing wins",
    make: (p) => {
      const a = write(p, "a", { "current-context": "here", users: [{ name: "me", user: { token: "t0ken" } }] })
      const b = config(p, { user: { token: "other" }, more: { "current-context": "there" } })
      return [a, join(p.folder, "missing"), write(p, "empty", ""), write(p, "b", b)].join(":")
    },
    right: TOKEN,
  },
  { name: "a folder", make: (p) => p.folder, right: /cannot read .*: EISDIR/ },
  { name: "no file", make: (p) => join(p.folder, "missing"), right: /no such file/ },
]

export const cases: Case[] = [
  ...tokens,
  ...impersonations,
  ...unknown,
  ...certificates,
  ...servers,
  ...plugins,
  ...providers,
  ...texts,
  ...strict,
  ...lists,
]
