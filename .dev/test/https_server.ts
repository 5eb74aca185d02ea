// Real HTTPS servers with throw-away CAs on 127.0.0.1, and a proxy; also for programs that are no tests.
import { mkdtempSync } from "node:fs"
import http, { type IncomingHttpHeaders, type ServerResponse } from "node:http"
import net, { type AddressInfo, type Socket } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import tls, { type TLSSocket } from "node:tls"
import { type Authority, newAuthority } from "../apiserver/http.ts"

export const folder = mkdtempSync(join(tmpdir(), "connection-"))
/** What has to be ended. */
export const endings: (() => unknown)[] = []

export const [trusted, foreign] = [await newAuthority("trusted"), await newAuthority("foreign")]
export const identityOf = ({ issue }: Authority, ...sans: string[]) => issue({ cn: "server", sans })
export const local = await identityOf(trusted, "127.0.0.1", "::1")
export const [ada, bob] = [
  await trusted.issue({ cn: "ada", client: true }),
  await trusted.issue({ cn: "bob", client: true }),
]
export const base64 = (text: string | Uint8Array) => Buffer.from(text).toString("base64")

export type Call = {
  line: string
  query: URLSearchParams
  headers: IncomingHttpHeaders
  body: string
  subject: string | undefined
  at: number
  /** The number of its connection, from 0. */
  socket: number
}
/** Answers a call by what it returns, as JSON with code 200, or by itself. */
export type Handler = (call: Call, response: ServerResponse) => unknown
export type Served = Awaited<ReturnType<typeof serve>>

/** An HTTPS server that remembers its calls, the subjects of client certificates, and every socket. */
export async function serve(handle: Handler, { identity = local, host = "127.0.0.1", port = 0 } = {}) {
  const [calls, sockets]: [Call[], Set<Socket>] = [[], new Set()]
  const numbers = new WeakMap<object, number>()
  let opened = 0
  const web = http.createServer(async (request, response) => {
    let body = ""
    for await (const part of request) body += part
    const { pathname, searchParams: query } = new URL(request.url ?? "", "https://server")
    const { subject } = (request.socket as TLSSocket).getPeerCertificate() ?? {}
    const call = {
      line: `${request.method} ${pathname}`,
      query,
      headers: request.headers,
      body,
      subject: subject?.CN?.toString(),
      at: 0,
      socket: numbers.get(request.socket) ?? -1,
    }
    calls.push(call)
    const answer = await handle(call, response)
    if (answer !== undefined && !response.headersSent)
      response.end(typeof answer === "string" ? answer : JSON.stringify(answer))
  })
  const server = tls.createServer(
    { ...identity, ca: trusted.cert, requestCert: true, rejectUnauthorized: false },
    (socket) => {
      numbers.set(socket, opened++)
      socket.on("error", () => {})
      web.emit("connection", socket)
    },
  )
  server.on("connection", (socket: Socket) => {
    sockets.add(socket.on("close", () => sockets.delete(socket)))
  })
  await new Promise<void>((done) => server.listen(port, host, done))
  const address = `https://${net.isIPv6(host) ? `[${host}]` : host}:${(server.address() as AddressInfo).port}`
  const stop = () => {
    for (const socket of sockets) socket.destroy()
    return new Promise((done) => server.close(done))
  }
  endings.push(stop)
  return { address, port: (server.address() as AddressInfo).port, calls, sockets, stop, opened: () => opened }
}

/** A CONNECT proxy that logs; everything ends at the port that was asked for, on this machine. */
export async function connectProxy() {
  const [asked, sockets]: [string[], Socket[]] = [[], []]
  const server = net.createServer((socket) => {
    sockets.push(socket)
    socket
      .on("error", () => {})
      .once("data", (head) => {
        const target = /^CONNECT (\S+) /.exec(head.toString())?.[1] ?? ""
        asked.push(target)
        const onward = net.connect(Number(target.split(":").at(-1)), "127.0.0.1", () => {
          socket.write("HTTP/1.1 200 OK\r\n\r\n")
          socket.pipe(onward).pipe(socket)
        })
        sockets.push(onward.on("error", () => socket.destroy()))
      })
  })
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done))
  endings.push(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return { address: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, asked }
}
