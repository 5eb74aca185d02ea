/**
 * Where the cluster is, and as whom to ask: kubeconfigs as kubectl reads them, and the ServiceAccount of a pod.
 *
 * What is in use is read strictly: a field that is not honoured is an error that names it. No error quotes a value that may be
 * a secret. From top to bottom: where to look · which entries are used · what they may contain · files and YAML · TLS ·
 * credentials · plugins.
 */
import { createPrivateKey, X509Certificate } from "node:crypto"
import { existsSync } from "node:fs"
import { readFile, stat } from "node:fs/promises"
import { isIPv6 } from "node:net"
import { basename, dirname, join, resolve } from "node:path"
import {
  type Access,
  attempt,
  ConfigError,
  type Env,
  instant,
  isLoopback,
  messageOf,
  type Source,
  type Tls,
  trustedRoots,
  within,
  written,
} from "./operator.ts"
import project from "./package.json" with { type: "json" }

const PLUGIN_LIMIT_MS = 25_000
/** What a plugin gave is renewed this long before it expires. */
const RENEW_AHEAD_MS = 20_000

/** Reads KUBECONFIG if it is set, else the pod's ServiceAccount, else ~/.kube/config. Throws ConfigError. */
export async function findSource(env: Env, serviceAccount: string, context?: string): Promise<Source> {
  // Bun reads this variable when the process starts: removing it here would be too late.
  if (!/^(|0|false)$/.test(env.BUN_CONFIG_VERBOSE_FETCH ?? ""))
    throw new ConfigError("BUN_CONFIG_VERBOSE_FETCH is set, which prints every request with its credentials: unset it")
  const named = [...new Set(written(env.KUBECONFIG).split(":").filter(Boolean))]
  const home = join(env.HOME || "/", ".kube", "config")
  const inCluster = named.length === 0 && context === undefined && existsSync(join(serviceAccount, "token"))
  const paths = named.length > 0 ? named : [home]
  const load = async (name?: string) => (inCluster ? inClusterEntries(env, serviceAccount) : readEntries(paths, name))
  const entries = await load(context)
  if (!entries && named.length > 0)
    throw new ConfigError(`cannot read ${named.join(", ")}: there is no such file, or it is empty`)
  if (!entries)
    throw new ConfigError(
      `no cluster is configured: KUBECONFIG is not set, and there is neither a ServiceAccount in ${serviceAccount} ` +
        `nor ${home}. Set KUBECONFIG; on a k3s server to /etc/rancher/k3s/k3s.yaml`,
    )
  await readTls(entries)
  const from = inCluster ? "the pod's ServiceAccount" : `${named.length > 0 ? "KUBECONFIG " : ""}${paths.join(", ")}`
  const reload = async () => {
    // A file that is gone, or is being written at this moment, takes nothing away.
    const now = (await load(entries.context)) ?? entries
    if (now.server === entries.server) return accessOf(now)
    const change = `context ${entries.context} now leads to ${now.server}, at start to ${entries.server}`
    throw new ConfigError(`${change}: nothing is sent to either; restart the program to use the new server`)
  }
  return { from, inCluster, access: accessOf(entries), reload }
}

/** What is used of the configuration: checked, with absolute paths. */
interface Entries {
  server: string
  cluster: Fields<"cluster">
  user: Fields<"user">
  exec?: Fields<"exec"> | undefined
  provider?: Fields<"auth-provider"> | undefined
  context?: string
  namespace?: string | undefined
}

function accessOf(entries: Entries): Access {
  const { server, cluster, context, namespace } = entries
  const isVerified = server.startsWith("https:") && !cluster["insecure-skip-tls-verify"]
  const cached: Cached = {}
  return {
    server,
    isVerified,
    proxyUrl: cluster["proxy-url"],
    context,
    namespace,
    prepare: () => prepare(entries, cached),
  }
}

function inClusterEntries(env: Env, serviceAccount: string): Entries {
  const { KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port } = env
  const rule = "beside a ServiceAccount, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must both be set"
  if (!host || !port) throw new ConfigError(rule)
  return {
    server: `https://${isIPv6(host) ? `[${host}]` : host}:${port}`,
    cluster: { "certificate-authority": join(serviceAccount, "ca.crt") },
    user: { tokenFile: join(serviceAccount, "token") },
  }
}

type NamedEntry = Yaml & { file: string }

/** Follows kubectl: the first file to name an entry wins. Undefined if no file is there, or all are empty. */
async function readEntries(paths: string[], wanted?: string): Promise<Entries | undefined> {
  const files = (await Promise.all(paths.map(readKubeconfig))).filter((file) => file !== undefined)
  if (files.length === 0) return undefined
  const problems: string[] = []
  const check = (...more: string[]) => {
    if (problems.push(...more) > 0) throw new ConfigError(`${paths.join(", ")}: ${problems.join("; ")}`)
  }
  const find = (entry: "context" | "cluster" | "user", wantedName: string | undefined) => {
    const all = files.flatMap((file) => file[`${entry}s`].map((one) => ({ ...one, file: file.path }) as NamedEntry))
    const [first, ...others] = all.filter((one) => one.name === wantedName)
    const names = [...new Set(all.map((one) => shownName(one.name)))].join(", ") || "none"
    const what = `${entry} ${shownName(wantedName)}`
    if (!first) problems.push(`there is no ${what}; the file has ${names}`)
    if (others.some(({ file }) => file === first?.file)) problems.push(`${first?.file} has two entries for ${what}`)
    return { value: first?.[entry], what, folder: dirname(first?.file ?? "") }
  }
  const current = wanted ?? files.map((file) => file.current).find(Boolean)
  if (!current) check("current-context is missing; choose one with kubectl config use-context NAME")
  const context = readFields("context", find("context", current), problems)
  check()
  const cluster = readFields("cluster", find("cluster", context.cluster), problems)
  const { folder, value, what } = context.user ? find("user", context.user) : { folder: "", value: {}, what: "" }
  const user = readFields("user", { folder, value, what }, problems)
  const part = <E extends "exec" | "auth-provider">(entry: E) =>
    user[entry] ? readFields(entry, { value: user[entry], what: `${what}: ${entry}`, folder }, problems) : undefined
  const exec = part("exec")
  const provider = part("auth-provider")
  check()
  const judge = (where: string, mistakes: Mistake[]) =>
    problems.push(...mistakes.filter(([isWrong]) => isWrong).map(([, text]) => `${where}: ${text}`))
  judge(`cluster ${shownName(context.cluster)}`, clusterMistakes(cluster))
  judge(what, userMistakes(user))
  if (exec) judge(`${what}: exec`, execMistakes(exec))
  if (provider) judge(`${what}: auth-provider`, providerMistakes(provider))
  check()
  const server = (cluster.server ?? "").replace(/\/+$/, "").replace(/^https?/i, (scheme) => scheme.toLowerCase())
  return { server, cluster, user, exec, provider, context: current ?? "", namespace: context.namespace }
}

type Yaml = { [key: string]: unknown }
const isMap = (value: unknown): value is Yaml => typeof value === "object" && value !== null && !Array.isArray(value)
const isText = (value: unknown) => typeof value === "string"
type Values = { text: string; path: string; flag: boolean; texts: string[]; list: Yaml[]; map: Yaml }
type Kind = keyof Values
const KINDS: Record<Kind, [mustBe: string, is: (value: unknown) => boolean]> = {
  text: ["a string, in quotes if it looks like a number", isText],
  path: ["a path", isText],
  flag: ["true or false", (value) => typeof value === "boolean"],
  texts: ["a list of strings", (value) => Array.isArray(value) && value.every(isText)],
  list: ["a list of mappings", (value) => Array.isArray(value) && value.every(isMap)],
  map: ["a mapping", isMap],
}
/** The fields that are honoured. Any other is an error in an entry that is used: ignored, it could change who asks. */
const FIELDS = {
  context: { text: ["cluster", "user", "namespace"], list: ["extensions"] },
  cluster: {
    text: ["server", "certificate-authority-data", "tls-server-name", "proxy-url"],
    path: ["certificate-authority"],
    flag: ["insecure-skip-tls-verify", "disable-compression"],
    list: ["extensions"],
  },
  user: {
    text: ["token", "username", "password", "client-certificate-data", "client-key-data", "as", "as-uid"],
    path: ["tokenFile", "client-certificate", "client-key"],
    texts: ["as-groups"],
    map: ["as-user-extra", "exec", "auth-provider"],
    list: ["extensions"],
  },
  exec: {
    text: ["apiVersion", "command", "installHint", "interactiveMode"],
    flag: ["provideClusterInfo"],
    texts: ["args"],
    list: ["env"],
  },
  "auth-provider": { text: ["name"], map: ["config"] },
} as const
type Entry = keyof typeof FIELDS
type Groups<E extends Entry> = (typeof FIELDS)[E]
type Names<E extends Entry, K> = K extends keyof Groups<E> ? Extract<Groups<E>[K], readonly string[]>[number] : never
type Fields<E extends Entry> = {
  [F in Names<E, keyof Groups<E>>]?: { [K in Kind]: F extends Names<E, K> ? Values[K] : never }[Kind]
}

/** Reads an entry; its mistakes go to `problems`. As for kubectl, a field that is empty is absent. */
function readFields<E extends Entry>(
  entry: E,
  { value, what, folder }: { value: unknown; what: string; folder: string },
  problems: string[],
): Fields<E> {
  const groups: { [K in Kind]?: readonly string[] } = FIELDS[entry]
  const fields: Yaml = {}
  if (!isMap(value ?? {})) problems.push(`${what} must be a mapping`)
  for (const [name, field] of isMap(value) ? Object.entries(value) : []) {
    const kind = (Object.keys(KINDS) as Kind[]).find((one) => groups[one]?.includes(name))
    if (!kind) problems.push(`${what}: the field ${shown(name)} is not supported`)
    else if (field === null || field === "") continue
    else if (!KINDS[kind][1](field)) problems.push(`${what}: ${name} must be ${KINDS[kind][0]}`)
    else fields[name] = kind === "path" || isNearby(name, field) ? resolve(folder, String(field)) : field
  }
  return fields as Fields<E>
}

/** A plugin that is named with a path lives beside its kubeconfig; another is in PATH. */
const isNearby = (name: string, field: unknown) => name === "command" && String(field).includes("/")

const HIDDEN = "(not shown)"
/** The name of an entry; in a broken file anything can stand there. */
const shownName = (name: unknown) => (/^[\w.@:/+-]{1,100}$/.test(String(name)) ? String(name) : HIDDEN)
/** A word that should not be there, unless it may be a piece of a secret. */
const shown = (word: unknown) =>
  /^(?=.{1,40}$)[a-z]+([A-Z][a-z]+)*([-_.][a-z]+)*$/.test(String(word)) ? String(word) : HIDDEN

type PemField = "certificate-authority" | "client-certificate" | "client-key"
/** A mistake, if its condition holds. */
type Mistake = [isWrong: unknown, text: string]

const has = (fields: Yaml, name: PemField) => Boolean(fields[name] ?? fields[`${name}-data`])
const both = (fields: Yaml, name: PemField): Mistake => [
  fields[name] && fields[`${name}-data`],
  `${name} and ${name}-data are both given, and only one can be used`,
]

/** What is missing in a cluster, contradicts or is not supported. */
function clusterMistakes(cluster: Fields<"cluster">): Mistake[] {
  const url = URL.parse(cluster.server ?? "")
  const proxy = cluster["proxy-url"] ?? "http://"
  const scheme = /^(socks[\da-z]{0,2}):/.exec(proxy)?.[1] ?? "without http"
  return [
    [!/^https?:$/.test(url?.protocol ?? ""), "server must be a URL that begins with https://"],
    [url && url.href !== url.origin + url.pathname, "server must be a URL without user name, query and fragment"],
    [url?.protocol === "http:" && !isLoopback(url), "server: http:// is supported only for this machine, use https://"],
    [!/^https?:\/\//.test(proxy), `proxy-url ${scheme}:// is not supported, use http:// or https://`],
    [
      cluster["insecure-skip-tls-verify"] && has(cluster, "certificate-authority"),
      "insecure-skip-tls-verify and certificate-authority exclude each other",
    ],
    both(cluster, "certificate-authority"),
  ]
}

function userMistakes(user: Fields<"user">): Mistake[] {
  const { as, "as-uid": uid, "as-groups": groups = [], "as-user-extra": extra = {} } = user
  const values = Object.values(extra)
  const isSingle = (value: unknown) => KINDS.texts[1](value) && (value as string[]).length === 1
  return [
    both(user, "client-certificate"),
    both(user, "client-key"),
    [
      has(user, "client-certificate") !== has(user, "client-key"),
      "client-certificate and client-key: a client certificate and its key need each other, and one is missing",
    ],
    [
      user.username && (user.token ?? user.tokenFile),
      "a token and a username are both given, and only one can be used",
    ],
    [user.password && !user.username, "a password is given without a username"],
    [user.exec && user["auth-provider"], "exec and auth-provider are both given, and only one can be used"],
    [(uid || groups.length + values.length > 0) && !as, "as-uid, as-groups and as-user-extra need as"],
    // fetch sends each header once: it would join them to one group.
    [groups.length > 1, "as-groups: more than one group is not supported"],
    [!values.every(isSingle), "as-user-extra: only a list of one string is supported for each key"],
  ]
}

function execMistakes({ command, apiVersion = V1, interactiveMode = "Never", env = [] }: Fields<"exec">): Mistake[] {
  const isPair = ({ name, value }: Yaml) => name && isText(name) && isText(value)
  return [
    [!command, "command is missing"],
    [![V1, `${V1}beta1`].includes(apiVersion), `apiVersion must be ${V1} or ${V1}beta1`],
    [
      !["Never", "IfAvailable"].includes(interactiveMode),
      "interactiveMode must be Never or IfAvailable, because a plugin gets no terminal",
    ],
    [!env.every(isPair), "env must have a name and a value, both strings, in each entry"],
  ]
}

function providerMistakes({ name, config = {} }: Fields<"auth-provider">): Mistake[] {
  return [
    [name !== "oidc", `${shown(name)} is not supported, use exec`],
    [
      name === "oidc" && !(config["idp-issuer-url"] && config["client-id"] && config["id-token"]),
      "oidc must have idp-issuer-url, client-id and id-token",
    ],
  ]
}

type Kubeconfig = Record<"contexts" | "clusters" | "users", Yaml[]> & { path: string; current: string | undefined }

/** Reads one file. Undefined if there is none, or nothing in it. */
async function readKubeconfig(path: string): Promise<Kubeconfig | undefined> {
  const bytes = await readBytes(path).catch((error) => {
    if (error.code !== "ENOENT") throw new ConfigError(`cannot read ${path}: ${error.code}`)
  })
  const config = bytes && parseYaml(path, bytes)
  if (config === undefined || config === null) return undefined
  if (!isMap(config) || (config.kind ?? "Config") !== "Config" || (config.apiVersion ?? "v1") !== "v1")
    throw new ConfigError(
      `cannot read ${path} as a kubeconfig: it must be a mapping with apiVersion v1 and kind Config`,
    )
  const current = config["current-context"] ?? undefined
  if (current !== undefined && !isText(current)) throw new ConfigError(`${path}: current-context must be a string`)
  const entriesOf = (name: string) => {
    const entries = config[name] ?? []
    if (Array.isArray(entries)) return entries.filter(isMap)
    throw new ConfigError(`${path}: ${name} must be a list`)
  }
  const lists = { contexts: entriesOf("contexts"), clusters: entriesOf("clusters"), users: entriesOf("users") }
  return { ...lists, path, current: current as string | undefined }
}

const BINARY = "\u{e000}"
const MERGE = "\u{e001}"

/** Parses the first document, like kubectl. An error tells where, never what stands there. */
function parseYaml(path: string, bytes: Uint8Array): unknown {
  const [a, b] = bytes
  const encoding = a === 0xff && b === 0xfe ? "utf-16le" : a === 0xfe && b === 0xff ? "utf-16be" : "utf-8"
  const text = attempt(() => new TextDecoder(encoding as Bun.Encoding, { fatal: true }).decode(bytes))
  if (text === undefined)
    throw new ConfigError(`cannot read ${path}: it must be text in UTF-8, or UTF-16 with a byte order mark`)
  const start = /^(?:[ \t]*(?:[#%].*)?\r?\n)*(?:---(?=\s|$))?/.exec(text)?.[0].length ?? 0
  const length = text.slice(start).search(/^(?:---|\.\.\.)(?=\s|$)/m)
  const document = length < 0 ? text : text.slice(0, start + length)
  // Bun drops the tag !!binary, and merges keys in another order than kubectl: both are marked, for `resolved`.
  const marked = document
    .replace(
      /(?:!!binary|!<tag:yaml.org,2002:binary>)(\s+(?:&\S+\s+)?(?:[|>][-+\d]*[ \t]*\r?\n\s*|["'])?)/g,
      `$1${BINARY}`,
    )
    .replace(/(^|[\s{,])<<(?=[ \t]*:)/gm, `$1${MERGE}`)
  try {
    return resolved(Bun.YAML.parse(marked))
  } catch (error) {
    const reason = messageOf(error).replace(/^YAML Parse error: /, "")
    throw new ConfigError(`cannot read ${path} as YAML: ${reason}${placeOf(document)}`)
  }
}

/** Decodes !!binary, and merges as kubectl does: what stands later wins, also where that is the merge. */
function resolved(value: unknown): unknown {
  if (typeof value === "string")
    return value.startsWith(BINARY) ? Buffer.from(value.slice(1), "base64").toString() : value.replaceAll(MERGE, "<<")
  if (Array.isArray(value)) return value.map(resolved)
  if (!isMap(value)) return value
  const entries = Object.entries(value).flatMap(([key, inner]) => {
    const merged = [resolved(inner)].flat().toReversed()
    return key === MERGE ? merged.flatMap((one) => Object.entries(one ?? {})) : [[key, resolved(inner)] as const]
  })
  return Object.fromEntries(entries)
}

/** Where an error is, which Bun does not tell: after the longest beginning that can be parsed. */
function placeOf(text: string): string {
  const lines = text.split("\n")
  const parses = (part: string) => attempt(() => [Bun.YAML.parse(part)]) !== undefined
  let line = lines.length - 1
  while (line > 0 && !parses(lines.slice(0, line).join("\n"))) line--
  const before = lines.slice(0, line).map((one) => `${one}\n`)
  let column = lines[line]?.length ?? 0
  while (column > 0 && !parses(before.join("") + lines[line]?.slice(0, column))) column--
  return ` (line ${line + 1}, column ${column + 1})`
}

const readOnce = new Map<string, Uint8Array>()

/** Reads a file. A FIFO, or a shell's <(command), can be read only once: what it held is kept. */
async function readBytes(path: string): Promise<Uint8Array> {
  const kept = readOnce.get(path)
  if (kept) return kept
  const isFile = (await stat(path)).isFile()
  const bytes = await readFile(path)
  if (!isFile) readOnce.set(path, bytes)
  return bytes
}

/** Reads the file that a field names. An error has the folder alone: the name could be a secret in the wrong place. */
function readNamed(field: string, path: string): Promise<Uint8Array> {
  return readBytes(path).catch((error) => {
    throw new ConfigError(`${field} names a file in ${dirname(path)} that cannot be read: ${error.code}`)
  })
}

const CERTIFICATE = /-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/g
const PRIVATE_KEY = /-----BEGIN ([A-Z]+ )?PRIVATE KEY-----[\s\S]+?-----END ([A-Z]+ )?PRIVATE KEY-----/g

/** The PEM blocks of a field, from its data or its file; none if it is not given. */
async function readPem(fields: Fields<"cluster"> & Fields<"user">, field: PemField): Promise<string[]> {
  const path = fields[field]
  const data = fields[`${field}-data`]?.replace(/[\r\n]/g, "")
  if (path === undefined && data === undefined) return []
  const bytes = path === undefined ? Buffer.from(data ?? "", "base64") : await readNamed(field, path)
  const isKey = field === "client-key"
  const blocks = Buffer.from(bytes)
    .toString("latin1")
    .match(isKey ? PRIVATE_KEY : CERTIFICATE)
  const isBase64 = path !== undefined || /^[A-Za-z0-9+/]+={0,2}$/.test(data ?? "")
  const isUsable = (pem: string) => attempt(() => (isKey ? createPrivateKey(pem) : new X509Certificate(pem)))
  if (isBase64 && blocks?.every(isUsable)) return blocks
  const content = isKey ? "a private key without a passphrase" : "certificates"
  throw new ConfigError(
    path === undefined
      ? `${field}-data must be the base64 of ${content} in PEM form`
      : `${field}: ${path} must hold ${content} in PEM form`,
  )
}

/** Reads and checks what TLS needs: at start, and again and again, for files are renewed. */
async function readTls({ server, cluster, user }: Entries): Promise<Tls> {
  if (server.startsWith("http:")) return {}
  const ca = await readPem(cluster, "certificate-authority")
  const cert = await readPem(user, "client-certificate")
  const [key] = await readPem(user, "client-key")
  checkPair("client-certificate", cert[0], key)
  return {
    ca: ca.length > 0 ? ca : trustedRoots(),
    // As for Go, an intermediate CA is enough.
    allowPartialTrustChain: true,
    ...(key && { cert: cert.join("\n"), key }),
    ...(cluster["tls-server-name"] && { serverName: cluster["tls-server-name"] }),
    // Said either way: what is left open, NODE_TLS_REJECT_UNAUTHORIZED decides.
    rejectUnauthorized: !cluster["insecure-skip-tls-verify"],
  }
}

function checkPair(name: string, cert: string | undefined, key: string | undefined): void {
  if (cert && key && !new X509Certificate(cert).checkPrivateKey(createPrivateKey(key)))
    throw new ConfigError(`${name} and its key do not belong together`)
}

/** What is sent with each call, read from the files as they are now. */
async function prepare(entries: Entries, cached: Cached): Promise<{ headers: Record<string, string>; tls: Tls }> {
  const { server, cluster, user } = entries
  const tls = await readTls(entries)
  // As for kubectl, credentials go nowhere without TLS.
  const { authorization, ...identity } = server.startsWith("https:") ? await credentialsOf(entries, cached) : {}
  const { as, "as-uid": uid, "as-groups": groups = [], "as-user-extra": extra = {} } = user
  const headers = Object.entries({
    Accept: "application/json, */*",
    "User-Agent": `${project.name}/${project.version}`,
    "Accept-Encoding": cluster["disable-compression"] && "identity",
    Authorization: authorization,
    "Impersonate-User": as,
    "Impersonate-Uid": uid,
    "Impersonate-Group": groups[0],
    ...Object.fromEntries(
      Object.entries(extra).map(([key, value]) => [`Impersonate-Extra-${encodeURIComponent(key)}`, value]),
    ),
  }).filter(([, value]) => value)
  return {
    headers: Object.fromEntries(headers.map(([name, value]) => [name, headerText(name, String(value))])),
    tls: { ...tls, ...identity },
  }
}

/** A value as the bytes of UTF-8, as Go sends it. */
function headerText(name: string, value: string): string {
  if (/\p{Cc}/u.test(value)) throw new Error(`the value for the header ${name} has control characters`)
  return Buffer.from(value).toString("latin1")
}

type Credentials = { authorization?: string; cert?: string; key?: string }
const bearer = (token: string): Credentials => ({ authorization: `Bearer ${token.trim()}` })

/** As whom to ask. As for kubectl, what the kubeconfig has itself goes before a plugin. */
async function credentialsOf(entries: Entries, cached: Cached): Promise<Credentials> {
  const { user, exec, provider } = entries
  const { token, tokenFile, username, password = "" } = user
  if (tokenFile) return bearer(await readToken(tokenFile).catch((error) => token ?? Promise.reject(error)))
  if (token) return bearer(token)
  if (username) return { authorization: `Basic ${Buffer.from(`${username}:${password}`).toString("base64")}` }
  if (provider) return bearer(validIdToken(String(provider.config?.["id-token"])))
  if (!exec || user["client-certificate"] || user["client-certificate-data"]) return {}
  if (
    !cached.status ||
    Date.now() >= (instant(cached.status.expirationTimestamp) ?? Number.POSITIVE_INFINITY) - RENEW_AHEAD_MS
  )
    cached.status = await runPlugin(exec, exec.provideClusterInfo ? await clusterInfoOf(entries) : undefined)
  const { token: given, clientCertificateData: cert, clientKeyData: key } = cached.status
  return { ...(given && bearer(given)), ...(cert && key && { cert, key }) }
}

async function readToken(path: string): Promise<string> {
  const token = new TextDecoder().decode(await readNamed("tokenFile", path)).trim()
  if (!token) throw new Error(`tokenFile: ${path} is empty`)
  return token
}

/** It is not refreshed: kubectl would not learn of the new refresh-token, and its login would end. */
function validIdToken(token: string): string {
  const claims = attempt(() => JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString()))
  if (claims?.exp * 1_000 > Date.now() + RENEW_AHEAD_MS) return token
  throw new Error("auth-provider oidc: the id-token has expired; log in again with kubectl, or use exec")
}

const V1 = "client.authentication.k8s.io/v1"
/** What a plugin answered last. */
type Cached = { status?: Status }
type Status = { token?: string; clientCertificateData?: string; clientKeyData?: string; expirationTimestamp?: string }

/** The cluster as a plugin is told of it, if it asks. */
async function clusterInfoOf({ server, cluster }: Entries): Promise<Yaml> {
  const { extensions = [], "certificate-authority": path, ...fields } = cluster
  const data = path && Buffer.from(await readNamed("certificate-authority", path)).toString("base64")
  const config = extensions.find(({ name }) => name === "client.authentication.k8s.io/exec")?.extension
  return { ...fields, server, ...(data && { "certificate-authority-data": data }), config }
}

/** Runs a credential plugin in a process group of its own, which ends with this program, or when it takes too long. */
async function runPlugin(exec: Fields<"exec">, cluster: Yaml | undefined): Promise<Status> {
  const { apiVersion = V1, command = "", args = [], installHint = "" } = exec
  const extra = Object.fromEntries((exec.env ?? []).map(({ name, value }) => [String(name), String(value)]))
  const request = { apiVersion, kind: "ExecCredential", spec: { interactive: false, cluster } }
  const env = { ...process.env, ...extra, KUBERNETES_EXEC_INFO: JSON.stringify(request) }
  const plugin = `the credential plugin ${shown(basename(command))}`
  const program = Bun.which(command)
  if (!program) throw new Error(`${plugin} is not installed or not in PATH. ${installHint}`.trim())
  const child = Bun.spawn([program, ...args], { env, stderr: "pipe", detached: true })
  const end = () => attempt(() => child.exitCode === null && process.kill(-child.pid, "SIGKILL"))
  process.on("exit", end)
  let complaint = ""
  const listen = async () => {
    const decoder = new TextDecoder()
    for await (const part of child.stderr)
      complaint = (complaint + decoder.decode(part, { stream: true })).slice(-1_000)
  }
  try {
    const ended = Promise.all([child.stdout.text(), child.exited, listen()])
    const [output, code] = await within(PLUGIN_LIMIT_MS, new AbortController().signal, "we", () => ended)
    if (code !== 0) throw new Error(`exit code ${code}`)
    return readStatus(output, apiVersion)
  } catch (error) {
    const values = [...args, ...Object.values(extra)].flatMap((value) => [value, value.replace(/^-[\w-]+=/, "")])
    const secrets = values.filter((value) => value.length > 3 && shown(value) === HIDDEN)
    const said = secrets.reduce((text, secret) => text.replaceAll(secret, "***"), complaint.trim())
    throw new Error(`${plugin} failed: ${messageOf(error)}${said && `; it said: ${said}`}`)
  } finally {
    process.off("exit", end)
    end()
  }
}

function readStatus(output: string, apiVersion: string): Status {
  // The parser's own message would show a piece of what may be a secret.
  const answer = attempt(() => JSON.parse(output) as { apiVersion?: string; status?: Status })
  const { token, clientCertificateData: cert, clientKeyData: key } = answer?.status ?? {}
  if (!answer?.status || (!token && !cert && !key))
    throw new Error("its output must be an ExecCredential with a token or a client certificate")
  if ((answer.apiVersion ?? apiVersion) !== apiVersion) throw new Error(`its answer must have apiVersion ${apiVersion}`)
  if (!cert !== !key) throw new Error("a client certificate and its key need each other, and it gave only one")
  checkPair("its client certificate", cert, key)
  return answer.status
}
