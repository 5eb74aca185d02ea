// A gate, that is a proxy, between operators and an API server that can stop a call: it holds it before it is
// forwarded, or forwards it and holds the answer; then it lets go or cuts the connection. Each operator has a path of
// its own, by which its calls are known.
import http from "node:http"
import type { AddressInfo, Socket } from "node:net"
import tls from "node:tls"
import { newAuthority } from "../apiserver/http.ts"

/** A call, as far as it can be chosen by. */
export interface Call {
  /** The path's first part: whose call it is. */
  caller: string
  verb: string
  namespace: string
  resource: string
  /** From the path or, of what is created, from the body. */
  name: string
  selector: string
  /** It is to have no effect. */
  dryRun: boolean
  /** Of what is created. */
  labels: Record<string, string>
}
/**
 * `before`: the call has not reached the server. `after`: it was applied, and its answer has not reached the operator.
 */
export type Moment = "before" | "after"
export type Fate = "go on" | "cut"

/** Catches the calls that match until it is opened. */
export class Trap {
  readonly held: { call: Call; end: (fate: Fate) => void }[] = []
  private isOpen = false

  constructor(
    readonly moment: Moment,
    private readonly matches: (call: Call) => boolean,
  ) {}
  /** Sees every call, in their order. */
  catches(call: Call): boolean {
    return this.matches(call) && !this.isOpen
  }
  hold(call: Call): Promise<Fate> {
    return new Promise((end) => this.held.push({ call, end }))
  }
  /** Catches no more. */
  open(): void {
    this.isOpen = true
  }
  /** Ends what is held. */
  end(fate: Fate): void {
    this.open()
    for (const { end } of this.held) end(fate)
  }
}

const VERBS: Record<string, string> = { POST: "create", PUT: "update", PATCH: "patch", DELETE: "delete" }
const PATH = /^\/([^/]+)(\/(?:api\/v1|apis\/[^/]+\/v\w+)(?:\/namespaces\/([^/]+))?\/([^/]+)(?:\/([^/]+))?.*|\/.*)$/

/** Where a request leads, and what it is. */
function understand(method: string, url: string, body: string): { path: string; call: Call } {
  const { pathname, search, searchParams } = new URL(url, "https://proxy")
  const [, caller = "", path = "", namespace = "", resource = "", name = ""] = PATH.exec(pathname) ?? []
  const metadata = method === "POST" ? (JSON.parse(body) as { metadata?: Partial<Call> }).metadata : undefined
  const verb = VERBS[method] ?? (name ? "get" : searchParams.get("watch") ? "watch" : "list")
  const call = {
    caller,
    verb,
    namespace,
    resource,
    name: name || (metadata?.name ?? ""),
    labels: metadata?.labels ?? {},
  }
  const more = { selector: searchParams.get("labelSelector") ?? "", dryRun: searchParams.has("dryRun") }
  return { path: path + search, call: { ...call, ...more } }
}

export class Gate {
  private readonly traps = new Set<Trap>()
  private readonly sockets = new Set<Socket>()
  private readonly streams = new Set<Call>()
  private readonly onRequest = http.createServer((req, res) => {
    this.serve(req, res).catch(() => req.socket.destroy())
  })
  private constructor(
    private readonly server: string,
    private readonly serverCa: string,
    /** The certificate authority that an operator has to trust. */
    readonly ca: string,
    private readonly listener: tls.Server,
  ) {
    listener.on("secureConnection", (socket: tls.TLSSocket) => {
      this.sockets.add(socket)
      socket.on("close", () => this.sockets.delete(socket))
      socket.on("error", () => socket.destroy())
      this.onRequest.emit("connection", socket)
    })
  }

  /** A gate before the API server at this address, whose certificate this authority has signed. */
  static async start(server: string, serverCa: string): Promise<Gate> {
    const authority = await newAuthority("proxy-ca")
    const { cert, key } = await authority.issue({ cn: "proxy", sans: ["127.0.0.1"] })
    const listener = tls.createServer({ cert, key })
    const gate = new Gate(server, serverCa, authority.cert, listener)
    await new Promise<void>((done, fail) => listener.once("error", fail).listen(0, "127.0.0.1", done))
    return gate
  }
  /** The API server's address for this caller. */
  urlFor(caller: string): string {
    return `https://127.0.0.1:${(this.listener.address() as AddressInfo).port}/${caller}`
  }
  trap(moment: Moment, matches: (call: Call) => boolean): Trap {
    const trap = new Trap(moment, matches)
    this.traps.add(trap)
    return trap
  }
  remove(trap: Trap): void {
    trap.end("cut")
    this.traps.delete(trap)
  }
  /** What this caller is watching now. */
  watchedBy(caller: string): string[] {
    return [...this.streams].filter((call) => call.caller === caller).map(({ resource }) => resource)
  }
  close(): void {
    for (const trap of this.traps) this.remove(trap)
    for (const socket of this.sockets) socket.destroy()
    this.listener.close()
  }

  private async serve(req: http.IncomingMessage, res: http.ServerResponse): Promise<void> {
    const parts: Buffer[] = []
    for await (const part of req) parts.push(part as Buffer)
    const body = Buffer.concat(parts).toString()
    const { path, call } = understand(req.method ?? "GET", req.url ?? "/", body)
    const trap = [...this.traps].filter((t) => t.catches(call))[0]
    if (trap?.moment === "before" && (await trap.hold(call)) === "cut") return void req.socket.destroy()
    const answer = await this.forward(req, path, body)
    const isStream = call.verb === "watch"
    // Read whole before it is held, so that it cannot be lost with the server.
    const whole = isStream ? "" : await answer.text()
    if (trap?.moment === "after" && (await trap.hold(call)) === "cut") return void req.socket.destroy()
    const headers = [...answer.headers].filter(
      ([name]) => !/^(content-(encoding|length)|connection|transfer-encoding|keep-alive)$/.test(name),
    )
    res.writeHead(answer.status, Object.fromEntries(headers))
    if (!isStream) return void res.end(whole)
    res.flushHeaders()
    const reader = answer.body?.getReader()
    res.on("close", () => void reader?.cancel().catch(() => {}))
    if (answer.ok) this.streams.add(call)
    try {
      for (let read = await reader?.read(); read && !read.done; read = await reader?.read()) res.write(read.value)
    } finally {
      this.streams.delete(call)
    }
    res.end()
  }

  /** Goes to its end even when the caller is dead: a call that is under way arrives. */
  private forward({ method, headers }: http.IncomingMessage, path: string, body: string): Promise<Response> {
    const kept = ["authorization", "content-type", "accept", "user-agent"].map((name) => [
      name,
      String(headers[name] ?? ""),
    ])
    const init = {
      method,
      headers: Object.fromEntries(kept.filter(([, value]) => value)),
      body: body || null,
      tls: { ca: this.serverCa },
      timeout: false,
    }
    return fetch(this.server + path, init as RequestInit)
  }
}
