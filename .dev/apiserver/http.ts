// The embedded API server: the model behind HTTPS on 127.0.0.1, with its own CA, users with limited rights, a record of
// every call, and faults on demand.
import { mkdirSync, writeFileSync } from "node:fs"
import http from "node:http"
import type { AddressInfo, Socket } from "node:net"
import { join } from "node:path"
import tls from "node:tls"
import selfsigned from "selfsigned"
import { Source } from "../../operator.ts"
import { failure, Model, type ModelOptions, type Request, type Rule, type User, type WatchEvent } from "./model.ts"

/** A request as the audit log has it. */
export interface Call extends Omit<Request, "query"> {
  query: Record<string, string>
  user: string
  /** 0 until it is answered, and if it never is. */
  status: number
  at: number
  /** How long the answer took; for a watch, how long it lasted. */
  tookMs?: number
}
export interface Match {
  verb?: Request["verb"]
  resource?: string
  subresource?: string
  namespace?: string
  name?: string | RegExp
  when?(call: Call): boolean
}
export interface Action {
  /** Cuts the connection: before the request is applied, or after, in place of the answer. */
  drop?: "before" | "after"
  /** Answers this and does not apply the request. */
  status?: number
  reason?: string
  message?: string
  retryAfterSeconds?: number
  delayMs?: number
  hang?: boolean
  /** Of a watch: it begins with this event, which the model knows nothing of. */
  firstEvent?: object
  /** Of a watch: after so many events it ends cleanly, breaks within a line, or ends with an ERROR event. */
  cutAfter?: number
  breakLineAfter?: number
  errorAfter?: number
  /** Of that ERROR event, besides `reason`. */
  code?: number
  /** A log that never ends. */
  endlessBody?: boolean
  dateOffsetMs?: number
}

export interface Certificate {
  cert: string
  key: string
}
export interface Authority extends Certificate {
  issue(wanted: {
    cn: string
    groups?: string[]
    sans?: string[]
    client?: boolean
    days?: number
  }): Promise<Certificate>
}
export async function newAuthority(cn = "embedded-ca"): Promise<Authority> {
  const ec = { keyType: "ec", algorithm: "sha256" } as const
  const extensions = [
    { name: "basicConstraints", cA: true, critical: true },
    { name: "keyUsage", keyCertSign: true, cRLSign: true, digitalSignature: true, critical: true },
  ] as const
  const made = await selfsigned.generate([{ name: "commonName", value: cn }], { ...ec, extensions: [...extensions] })
  const ca = { cert: made.cert, key: made.private }
  return {
    ...ca,
    async issue({ cn, groups = [], sans = [], client = false, days = 30 }) {
      const subject = [
        ...groups.map((value) => ({ name: "organizationName", value })),
        { name: "commonName", value: cn },
      ]
      const altNames = sans.map((s) =>
        /^[\d.]+$|:/.test(s) ? { type: 7 as const, ip: s } : { type: 2 as const, value: s },
      )
      const leaf = await selfsigned.generate(subject, {
        ...ec,
        ca,
        notBeforeDate: new Date(Date.now() - 60_000),
        notAfterDate: new Date(Date.now() + days * 86_400_000),
        extensions: [
          { name: "keyUsage", digitalSignature: true, critical: true },
          { name: "extKeyUsage", serverAuth: !client, clientAuth: client },
          ...(altNames.length ? [{ name: "subjectAltName" as const, altNames }] : []),
        ],
      })
      return { cert: leaf.cert, key: leaf.private }
    },
  }
}

export interface ServerOptions extends Partial<ModelOptions> {
  /** Names in the server's certificate. */
  sans?: string[]
  port?: number
  authority?: Authority
}
type Header = Record<string, string>
const JSON_TYPE = { "content-type": "application/json" }
const VERBS: Record<string, Request["verb"]> = { POST: "create", PUT: "update", PATCH: "patch", DELETE: "delete" }

export class ApiServer {
  readonly calls: Call[] = []
  /** Bearer tokens and whose they are. */
  tokens: Record<string, string> = { admin: "admin" }
  model: Model
  url = ""
  port = 0
  private readonly faults: { match: Match; action: Action; times: number; after: number }[] = []
  private readonly sockets = new Set<Socket>()
  private server: tls.Server | undefined
  private timer: ReturnType<typeof setTimeout> | undefined
  private readonly onRequest = http.createServer((req, res) => {
    this.serve(req, res).catch(() => req.socket.destroy())
  })

  constructor(
    private readonly options: ServerOptions,
    readonly authority: Authority,
    private readonly own: Certificate,
  ) {
    this.port = options.port ?? 0
    this.model = this.newModel()
  }
  get ca(): string {
    return this.authority.cert
  }
  get caKey(): string {
    return this.authority.key
  }
  private newModel(): Model {
    const model = new Model({ now: Date.now, ...this.options, onDue: () => setImmediate(() => this.pump()) })
    model.users.set("system:anonymous", { rules: [] })
    for (const [name, user] of this.model?.users ?? []) model.users.set(name, user)
    return model
  }
  private readonly now = () => (this.options.now ?? Date.now)()
  private pump(): void {
    clearTimeout(this.timer)
    if (!this.server) return
    const next = this.model.tick()
    if (next !== undefined)
      this.timer = setTimeout(() => this.pump(), Math.min(Math.max(next - this.now(), 0), 2 ** 31 - 1))
  }

  /** Listens, on the port that it had before. A stopped server keeps what it stored; `reset` begins with nothing. */
  async start({ reset = false } = {}): Promise<void> {
    if (reset) this.model = this.newModel()
    const { cert, key } = this.own
    const server = tls.createServer(
      { cert, key, ca: this.ca, requestCert: true, rejectUnauthorized: false },
      (socket) => {
        if (this.server !== server) return socket.destroy()
        this.sockets.add(socket)
        socket.on("close", () => this.sockets.delete(socket))
        socket.on("error", () => socket.destroy())
        this.onRequest.emit("connection", socket)
      },
    )
    this.server = server
    await new Promise<void>((done, fail) => server.once("error", fail).listen(this.port, "127.0.0.1", done))
    this.port = (server.address() as AddressInfo).port
    this.url = `https://127.0.0.1:${this.port}`
    this.pump()
  }
  /** Cuts every connection and listens no more. What falls due meanwhile happens at the next start. */
  async stop(): Promise<void> {
    const { server } = this
    this.server = undefined
    clearTimeout(this.timer)
    for (const socket of this.sockets) socket.destroy()
    await new Promise<void>((done) => (server ? server.close(() => done()) : done()))
  }
  close(): Promise<void> {
    return this.stop()
  }

  addUser(name: string, rules: Rule[], { token = name, ...user }: { token?: string } & Partial<User> = {}): void {
    this.model.users.set(name, { ...user, rules })
    this.tokens[token] = name
  }
  setTokens(tokens: Record<string, string>): void {
    this.tokens = tokens
  }
  /** Uses the first fault that matches a call, `times` times, after skipping `after` calls. Answers how to lift it. */
  fault(match: Match, action: Action, { times = 1, after = 0 } = {}): () => void {
    const fault = { match, action, times, after }
    this.faults.push(fault)
    return () => {
      fault.times = 0
    }
  }
  private faultOf(call: Call): Action | undefined {
    const fits = (m: Match) =>
      (m.verb ?? call.verb) === call.verb &&
      (m.resource ?? call.resource) === call.resource &&
      (m.subresource ?? call.subresource) === call.subresource &&
      (m.namespace ?? call.namespace) === call.namespace &&
      (m.name === undefined || (m.name instanceof RegExp ? m.name.test(call.name ?? "") : m.name === call.name)) &&
      (m.when?.(call) ?? true)
    const fault = this.faults.find((f) => f.times > 0 && fits(f.match))
    if (!fault) return undefined
    if (fault.after-- > 0) return undefined
    fault.times--
    return fault.action
  }

  /** As JSON, which is YAML. `user` owns a token; entries of cluster and userEntry add to or replace what is there. */
  kubeconfig({
    user = "admin",
    namespace = "default",
    server = this.url,
    cluster = {},
    userEntry = {},
  }: KubeconfigOptions = {}): string {
    const token = Object.entries(this.tokens).find(([, owner]) => owner === user)?.[0]
    const ca = Buffer.from(this.ca).toString("base64")
    const config = {
      apiVersion: "v1",
      kind: "Config",
      "current-context": "embedded",
      clusters: [{ name: "embedded", cluster: { server, "certificate-authority-data": ca, ...cluster } }],
      users: [{ name: user, user: { ...(token && { token }), ...userEntry } }],
      contexts: [{ name: "embedded", context: { cluster: "embedded", user, namespace } }],
    }
    return JSON.stringify(config, null, 2)
  }
  /** Where the client finds it, for a user who owns a token. */
  sourceFor(user: string): Source {
    const [token] = Object.entries(this.tokens).find(([, owner]) => owner === user) ?? []
    const cluster = { "certificate-authority-data": String(this.ca) }
    const config = { server: this.url, cluster, user: { ...(token && { token }) } }
    return new Source("a test", false, config, async () => undefined)
  }
  writeKubeconfig(dir: string, options: KubeconfigOptions = {}): string {
    mkdirSync(dir, { recursive: true })
    const file = join(dir, "kubeconfig")
    writeFileSync(file, this.kubeconfig(options))
    return file
  }

  private userOf(req: http.IncomingMessage): string | undefined {
    const bearer = /^Bearer (.+)$/.exec(req.headers.authorization ?? "")?.[1]
    if (bearer) return this.tokens[bearer]
    const socket = req.socket as tls.TLSSocket
    const shown = socket.getPeerCertificate?.()
    if (shown?.subject) return socket.authorized ? String(shown.subject.CN) : undefined
    return "system:anonymous"
  }
  private async serve(req: http.IncomingMessage, res: http.ServerResponse): Promise<void> {
    const chunks: Buffer[] = []
    for await (const chunk of req) chunks.push(chunk as Buffer)
    const url = new URL(req.url ?? "/", "https://server")
    const query = Object.fromEntries(url.searchParams)
    const user = this.userOf(req)
    if (/^\/(livez|readyz|healthz)/.test(url.pathname))
      return void res.setHeader("content-type", "text/plain").end("ok")
    const parsed = parsePath(req.method ?? "GET", url.pathname, query)
    if (!parsed) return void res.writeHead(404, { "content-type": "text/plain" }).end("404 page not found\n")
    const text = Buffer.concat(chunks).toString()
    const call: Call = { ...parsed, query, user: user ?? "", status: 0, at: Date.now() }
    this.calls.push(call)
    const answer = (status: number, body: unknown, header: Header = {}) => {
      call.status = status
      call.tookMs = Date.now() - call.at
      const plain = typeof body === "string"
      res
        .writeHead(status, { "content-type": plain ? "text/plain" : "application/json", ...header })
        .end(plain ? body : JSON.stringify(body))
    }
    try {
      if (text) call.body = JSON.parse(text)
    } catch {
      return answer(
        400,
        failure(400, "BadRequest", `the object provided is unrecognized: json parse error (${text.slice(0, 20)})`),
      )
    }
    if (req.headers["content-type"]) call.contentType = req.headers["content-type"]
    const action = this.faultOf(call) ?? {}
    if (action.dateOffsetMs) res.setHeader("date", new Date(Date.now() + action.dateOffsetMs).toUTCString())
    if (action.drop === "before") return void req.socket.destroy()
    if (action.hang) return
    if (action.delayMs) await Bun.sleep(action.delayMs)
    if (action.status) {
      const { status, reason = REASONS[status], message = "injected", retryAfterSeconds } = action
      if (retryAfterSeconds === undefined) return answer(status, failure(status, reason, message))
      const body = failure(status, reason, message, { retryAfterSeconds })
      return answer(status, body, { "retry-after": String(retryAfterSeconds) })
    }
    if (user === undefined) return answer(401, failure(401, "Unauthorized", "Unauthorized"))
    if (call.verb === "watch") return this.stream(call, req, res, action)
    const { status, body, warnings = [] } = this.model.request(call)
    this.pump()
    if (action.drop) return void req.socket.destroy()
    if (action.endlessBody) return this.endless(call, res)
    const partial =
      call.verb === "list" && status === 200 && req.headers.accept?.includes("as=PartialObjectMetadataList")
    if (partial) return answer(status, metadataOf(body as { metadata: unknown; items: { metadata: unknown }[] }))
    const quoted = warnings.map((text) => `299 - "${text.replaceAll(/["\\]/g, "\\$&")}"`)
    answer(status, body, quoted.length ? { warning: quoted.join(", ") } : {})
  }
  private endless(call: Call, res: http.ServerResponse): void {
    call.status = 200
    res.writeHead(200, { "content-type": "text/plain" })
    const line = `${"x".repeat(1023)}\n`
    const timer = setInterval(() => res.write(line.repeat(64)), 5)
    res.on("close", () => clearInterval(timer))
  }
  private stream(call: Call, req: http.IncomingMessage, res: http.ServerResponse, action: Action): void {
    let sent = 0
    let over = false
    const open = () => {
      if (!res.headersSent) res.writeHead(200, JSON_TYPE).flushHeaders()
    }
    const end = (line?: string) => {
      if (!over) res.end(line)
      over = true
    }
    const interrupt = () => {
      const error = { type: "ERROR", object: failure(action.code ?? 410, action.reason ?? "Expired", "injected") }
      if (action.errorAfter === sent) end(`${JSON.stringify(error)}\n`)
      if (action.cutAfter === sent) end()
    }
    const send = (event: WatchEvent) => {
      open()
      interrupt()
      if (over) return
      const line = `${JSON.stringify(event)}\n`
      if (action.breakLineAfter !== sent++) {
        res.write(line)
        return interrupt()
      }
      over = true
      res.write(line.slice(0, line.length / 2))
      setTimeout(() => req.socket.destroy(), 5)
    }
    const watching = this.model.watch(call, send, end)
    call.status = watching.status
    if (watching.status !== 200)
      return void res.writeHead(watching.status, JSON_TYPE).end(JSON.stringify(watching.body))
    open()
    if (action.firstEvent) res.write(`${JSON.stringify(action.firstEvent)}\n`)
    interrupt()
    this.pump()
    res.on("close", () => {
      call.tookMs = Date.now() - call.at
      watching.close()
    })
  }
}
/** A list as it is answered to who wants metadata alone. */
function metadataOf({ metadata, items }: { metadata: unknown; items: { metadata: unknown }[] }) {
  const partial = (kind: string, rest: object) => ({ kind, apiVersion: "meta.k8s.io/v1", ...rest })
  return partial("PartialObjectMetadataList", {
    metadata,
    // A real server says null here, and [] in an ordinary list.
    items: items.length ? items.map((item) => partial("PartialObjectMetadata", { metadata: item.metadata })) : null,
  })
}
export interface KubeconfigOptions {
  user?: string
  namespace?: string
  server?: string
  cluster?: Record<string, unknown>
  userEntry?: Record<string, unknown>
}
const REASONS: Record<number, string> = {
  401: "Unauthorized",
  403: "Forbidden",
  404: "NotFound",
  409: "Conflict",
  410: "Expired",
  422: "Invalid",
  429: "TooManyRequests",
  500: "InternalError",
  503: "ServiceUnavailable",
  504: "Timeout",
}
function parsePath(method: string, path: string, query: Header): Omit<Request, "query"> | undefined {
  const watching = query.watch === "true" || query.watch === "1"
  if (path === "/version") return { verb: "get", resource: "version" }
  const m = /^\/(?:api\/v1|apis\/([^/]+)\/v\w+)\/(.+)$/.exec(path)
  if (!m) return undefined
  const group = m[1] ?? ""
  const parts = m[2]!.split("/").map(decodeURIComponent)
  // namespaces/NAME alone is about the namespace itself.
  const namespace = parts[0] === "namespaces" ? parts[1] : undefined
  const [resource = "", name, subresource] = namespace !== undefined && parts.length > 2 ? parts.slice(2) : parts
  let verb = VERBS[method] ?? (name ? "get" : watching ? "watch" : "list")
  if (verb === "delete" && !name) verb = "deletecollection"
  return {
    verb,
    resource,
    group,
    ...(namespace && { namespace }),
    ...(name && { name }),
    ...(subresource && { subresource }),
  }
}

export async function startApiServer(options: ServerOptions = {}): Promise<ApiServer> {
  const authority = options.authority ?? (await newAuthority())
  const own = await authority.issue({
    cn: "kube-apiserver",
    sans: options.sans ?? ["127.0.0.1", "localhost", "kubernetes.default.svc"],
  })
  const server = new ApiServer(options, authority, own)
  await server.start()
  return server
}
