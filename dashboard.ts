/**
 * The dashboard: a page about the Jobs on the admin's own machine. It watches what the commands list, tells an open
 * page what changes, and does what a person confirms there. cli.ts loads this file only for its command.
 *
 * 1 What the page is told, and asks for · 2 The site
 */
import { timingSafeEqual } from "node:crypto"
import {
  type CommandContext,
  CommandError,
  findEvidence,
  Inventory,
  jobOf,
  loadRecord,
  planRestart,
  print,
  RESOURCES,
  type Resource,
  recordLines,
  reportToStderr,
  runRestart,
  SELECTORS,
  type Sighting,
  seeConfigMap,
  seeJob,
  settingsLines,
} from "./cli.ts"
import dashboardPage from "./dashboard.html" with { type: "text" }
import * as operator from "./operator.ts"
import { ApiError, messageOf, nowOf, PREFIX, viewJob } from "./operator.ts"

// ────────────────────────────────── 1 What the page is told, and asks for ─────────────────────────────

const BEAT_MS = 10_000
const RETRY_MS = 2_000
/** A watch notices a server that hangs only after minutes. */
const ANSWER_MS = 5_000
/** So many lanes are sent at once: no text of megabytes is made. */
const MOST_LANES = 250

/** For JSON.stringify: control and bidi characters become visible. */
const visible = (_: string, value: unknown) => (typeof value === "string" ? operator.printable(value) : value)

/** An inventory that watches keep current; it tells every open page what changes. */
export class Dashboard extends Inventory {
  /** What cannot be read right now. `isOutage`: there is no answer at all. */
  private readonly problems = new Map<string, { text: string; isOutage: boolean; sinceAt: number }>()
  private readonly pages = new Set<ReadableStreamDefaultController<string>>()
  private looking: Promise<unknown> = Promise.resolve()

  constructor(private readonly context: Pick<CommandContext, "world" | "from" | "readSettings">) {
    super(context.world)
  }

  /** Resolves once everything was listed, or could not be. */
  async start(): Promise<void> {
    const { namespaces } = this.world.config
    const start = (namespace: string, resource: Resource) =>
      new Promise<void>((ready) => void this.listAndWatch(namespace, resource, ready))
    await Promise.all(namespaces.flatMap((namespace) => RESOURCES.map((resource) => start(namespace, resource))))
    // A burst of changes is sent as one.
    setInterval(() => this.changed.size > 0 && this.send(), 100).unref()
    void this.beat()
  }

  /** What an open page reads: everything, a piece after the other, and every change later. */
  events(): ReadableStream<string> {
    let page: ReadableStreamDefaultController<string>
    const start = (controller: ReadableStreamDefaultController<string>) => {
      page = controller
      this.pages.add(page)
      for (const key of this.entries.keys()) this.changed.add(key)
      this.send({ jobs: [...this.entries.keys()] })
    }
    return new ReadableStream({ start, cancel: () => void this.pages.delete(page) })
  }

  override take(type: string, sighting: Sighting): void {
    if (sighting.id === `configmaps/${operator.SETTINGS_MAP}`) void this.readSettings()
    else super.take(type, sighting)
  }

  /** The settings have changed: every Job is judged anew. The namespaces stay those that are watched. */
  private async readSettings(): Promise<void> {
    const { namespaces } = this.world.config
    try {
      const { config, from } = await this.context.readSettings()
      this.world.config = { ...config, namespaces }
      this.context.from = from
      for (const key of this.entries.keys()) this.changed.add(key)
      this.report("settings")
    } catch (error) {
      this.report("settings", error)
    }
  }

  private send(more: object = {}): void {
    if (this.pages.size === 0) return
    const keys = [...this.changed].slice(0, MOST_LANES)
    const event = this.eventWith(keys, more)
    for (const key of keys) this.changed.delete(key)
    for (const page of this.pages) page.enqueue(event)
    this.look(keys)
  }

  /** At failures that are unknown, one look after the other; what fails is tried again at the next beat. */
  private look(keys: Iterable<string>): void {
    this.looking = this.looking.then(() => this.explain(keys)).catch(() => {})
  }

  private eventWith(keys: string[], more: object): string {
    const { cluster, config } = this.world
    const facts = {
      ...more,
      now: nowOf(this.world),
      address: cluster.address,
      namespaces: config.namespaces,
      jobNames: config.jobNames,
      jobSelector: config.jobSelector?.text,
      settings: settingsLines(this.context.from, config),
      problems: Object.fromEntries(this.problems),
      lanes: Object.fromEntries(keys.map((key) => [key, this.statusOf(key) ?? null])),
    }
    return `data: ${JSON.stringify(facts, visible)}\n\n`
  }

  /** Lists once, then watches; after an error lists again. */
  private async listAndWatch(namespace: string, resource: Resource, ready: () => void): Promise<void> {
    const { clock, stop } = this.world
    const what = `${resource} in ${namespace}`
    for (let version = ""; !stop.aborted; await clock.sleep(RETRY_MS, stop)) {
      try {
        version ||= await this.list(namespace, resource)
        this.report(what)
        ready()
        version = await this.watch(namespace, resource, version)
      } catch (error) {
        version = ""
        this.report(what, error)
        ready()
      }
    }
  }

  /** Watches until the server ends it; returns the version to go on from. */
  private async watch(namespace: string, resource: Resource, resourceVersion: string): Promise<string> {
    const options = { silenceMs: 150_000, resourceVersion, selector: SELECTORS[resource] }
    for await (const { type, object } of this.world.cluster.watch(namespace, resource, options, this.world.stop)) {
      options.resourceVersion = object.metadata?.resourceVersion ?? options.resourceVersion
      if (type === "BOOKMARK") continue
      this.take(type, resource === "jobs" ? seeJob(object) : seeConfigMap(object.metadata ?? {}))
    }
    return options.resourceVersion
  }

  /** Without an error: it can be read again. */
  private report(what: string, error?: unknown): void {
    const isOutage = !(error instanceof ApiError && error.status < 500)
    const sinceAt = this.problems.get(what)?.sinceAt ?? nowOf(this.world)
    // What Bun adds to a failed fetch is for programmers.
    const text = messageOf(error).replace(/ For more information, pass `verbose: true` .*/, "")
    if (error === undefined) this.problems.delete(what)
    else this.problems.set(what, { text, isOutage, sinceAt })
    this.send()
  }

  /** While a page is open: asks for the server's version and for rejections, and keeps the page's connection alive. */
  private async beat(): Promise<void> {
    const { cluster, clock, stop } = this.world
    for (; !stop.aborted; await clock.sleep(BEAT_MS, stop)) {
      if (this.pages.size === 0) continue
      const answer = await cluster.version(AbortSignal.timeout(ANSWER_MS)).catch((error: unknown) => error)
      const isAway = answer instanceof Error && !(answer instanceof ApiError)
      await this.loadRejections()
      this.look(this.entries.keys())
      this.report("API server", isAway ? answer : undefined)
    }
  }

  /** The evidence of one failure: from its record or, without a name, from the pods that are left. */
  async evidenceOf(query: URLSearchParams): Promise<{ lines: string[] }> {
    const entry = this.entryOf(query.get("job") ?? "")
    const name = query.get("record")
    const job = name ? undefined : entry.job()
    if (job) return { lines: operator.evidenceLines(await findEvidence(this.world, viewJob(job), entry)) }
    const past = entry.records().find((one) => one.name === name)
    const record = past && (await loadRecord(this.world, past))
    if (!record) throw new CommandError("it is not there any more")
    return { lines: recordLines(record) }
  }

  /** Does what a person has confirmed on the page. Throws an error whose words the page shows. */
  async act({ action, job: key, uid }: Record<string, unknown>): Promise<{ text: string }> {
    const { cluster, kill } = this.world
    if (!this.statusOf(String(key))) throw new CommandError(`${key} is not shown here`)
    const job = jobOf(this.world, String(key))
    const live = await cluster.getJob(job.namespace, job.name, kill)
    if ((live?.metadata?.uid ?? "") !== uid) throw new CommandError(`${key} was replaced in the meantime: look again`)
    if (action === "restart") {
      const plan = await planRestart(this.world, job)
      if ("rejection" in plan) throw new CommandError(plan.rejection)
      const { result, details } = await runRestart(this.world, plan)
      if (!/^re(started|placed)$/.test(result)) throw new CommandError([result, details].filter(Boolean).join(": "))
      return { text: `${key} is ${result}, ${details}` }
    }
    const isPause = action === "pause"
    await cluster.annotateJob(viewJob(live as operator.Job), { [`${PREFIX}paused`]: isPause ? "true" : null }, kill)
    return { text: `${key} is ${isPause ? "paused" : "resumed"}` }
  }
}

// ───────────────────────────────────────────── 2 The site ─────────────────────────────────────────────

const newSecret = () => Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString("base64url")
const isSame = (a: string, b: string) => a.length === b.length && timingSafeEqual(Buffer.from(a), Buffer.from(b))

/** TypeScript takes an import of HTML for a bundle. */
const page = dashboardPage as unknown as string

function sourceOf(tag: "script" | "style"): string {
  const [, text = ""] = new RegExp(`<${tag}>([^]*?)</${tag}>`).exec(page) ?? []
  return `${tag}-src 'sha256-${new Bun.CryptoHasher("sha256").update(text).digest("base64")}'`
}

/** On every answer: nothing is kept, nothing leaks, and the page runs nothing but its own style and script. */
const HEADERS = {
  "Cache-Control": "no-store",
  "Content-Security-Policy": [
    `default-src 'none'; ${sourceOf("script")}; ${sourceOf("style")}; connect-src 'self'; img-src data:`,
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "require-trusted-types-for 'script'; trusted-types 'none'",
  ].join("; "),
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
}

function reply(body: string | ReadableStream, headers: Record<string, string>, status = 200): Response {
  return new Response(body, { status, headers: { ...HEADERS, ...headers } })
}

/** What comes of some work as JSON: with `failed` as its status and the error's words if it fails. */
async function replyJson(work: Promise<object>, failed: 404 | 409): Promise<Response> {
  const body = await work.catch((error: unknown) => ({ error: messageOf(error) }))
  const headers = { "Content-Type": "application/json" }
  return reply(operator.jsonText(body), headers, "error" in body ? failed : 200)
}

/** The page, its events and its actions, for the one who was given the address: on 127.0.0.1 and, if it exists, ::1. */
class Site {
  readonly token = newSecret()
  /** Valid once: the command line of a browser can be read by every user of the machine. */
  tokenForBrowser = newSecret()
  /** Actions under way: a stop lets them end. */
  readonly actions = new Set<Promise<unknown>>()
  readonly servers: Bun.Server<undefined>[] = []
  readonly port: number

  constructor(
    private readonly dashboard: Dashboard,
    port: number,
  ) {
    this.port = this.listen("127.0.0.1", port)
    operator.attempt(() => this.listen("::1", this.port))
  }

  /** Returns the port. Throws an error if it is taken. */
  private listen(hostname: string, port: number): number {
    const server = Bun.serve({
      hostname,
      port,
      development: false,
      // Without this, Bun 1.4.5 shares the port with every other process if development is off.
      reusePort: false,
      idleTimeout: 0,
      fetch: (request) => this.answer(request),
    })
    this.servers.push(server)
    return server.port ?? 0
  }

  private answer(request: Request): Response | Promise<Response> {
    const { pathname, searchParams } = new URL(request.url)
    const token = pathname === "/" ? searchParams.get("token") : null
    const cookies = new Bun.CookieMap(request.headers.get("cookie") ?? "")
    // Cookies know no ports: without the port in its name, a second dashboard would log the first one out.
    const cookie = `dashboard-${this.port}`
    if (!this.isFromHere(request) || !this.isKnown(token ?? cookies.get(cookie) ?? "")) return reply("", {}, 403)
    if (token !== null) {
      const attributes = "HttpOnly; SameSite=Strict; Path=/"
      // Not a 3xx: after a click in another site, browsers send no Strict cookie along a redirect.
      return reply("", { "Set-Cookie": `${cookie}=${this.token}; ${attributes}`, Refresh: "0; url=/" })
    }
    const route = `${request.method} ${pathname}`
    if (route === "GET /") return reply(page, { "Content-Type": "text/html; charset=utf-8" })
    if (route === "GET /events") return reply(this.dashboard.events(), { "Content-Type": "text/event-stream" })
    if (route === "GET /failure") return replyJson(this.dashboard.evidenceOf(searchParams), 404)
    if (route === "POST /action") return this.act(request)
    return reply("", {}, ["/", "/events", "/failure", "/action"].includes(pathname) ? 405 : 404)
  }

  /** Not DNS rebinding, nor a form or script of another site. */
  private isFromHere({ method, headers }: Request): boolean {
    const host = headers.get("host") ?? ""
    const origin = headers.get("origin") ?? (method === "GET" ? `http://${host}` : "")
    const isLoopback = ["127.0.0.1", "[::1]", "localhost"].some((name) => host === `${name}:${this.port}`)
    return isLoopback && origin === `http://${host}`
  }

  private isKnown(secret: string): boolean {
    const isForBrowser = isSame(secret, this.tokenForBrowser)
    if (isForBrowser) this.tokenForBrowser = newSecret()
    return isForBrowser || isSame(secret, this.token)
  }

  private async act(request: Request): Promise<Response> {
    // A form of another site cannot send JSON.
    if (request.headers.get("content-type") !== "application/json") return reply("", {}, 403)
    const acting = this.dashboard.act((await request.json()) as Record<string, unknown>)
    this.actions.add(acting)
    return replyJson(acting, 409).finally(() => this.actions.delete(acting))
  }
}

/** Serves the page until a signal. */
export async function dashboard(context: CommandContext): Promise<undefined> {
  const { world, env, options } = context
  const content = new Dashboard(context)
  await content.start()
  const site = new Site(content, Number(options.port ?? 0))
  const opening = `http://127.0.0.1:${site.port}/?token=`
  const address = opening + site.token
  // Not with printResult(), which masks secrets.
  await print(`Dashboard: ${address}\n`)
  reportToStderr("info", "open this address in a browser; Ctrl-C ends the dashboard")
  if (!options["no-open"]) openBrowser(opening + site.tokenForBrowser, env)
  await new Promise((done) => world.stop.addEventListener("abort", done))
  await Promise.allSettled(site.actions)
  await Promise.all(site.servers.map((server) => server.stop(true)))
}

/** Opens the browser, if there is one; whoever has none has the printed address. */
function openBrowser(address: string, { DISPLAY, WAYLAND_DISPLAY }: operator.Env): void {
  const isDesktop = process.platform !== "linux" || DISPLAY || WAYLAND_DISPLAY
  const opener = { darwin: "open", win32: "explorer" }[process.platform as string] ?? "xdg-open"
  if (isDesktop && Bun.which(opener)) Bun.spawn([opener, address], { stdio: ["ignore", "ignore", "ignore"] }).unref()
}
