// A client of Reenact's server, written from docs/protocol.md alone.

import {randomUUID} from "node:crypto"
import {constants, createReadStream} from "node:fs"
import {open, readFile, rename, rm} from "node:fs/promises"
import {homedir} from "node:os"
import {join} from "node:path"
import {blake2b} from "@noble/hashes/blake2.js"
import {Dealer} from "zeromq"

const VERSION = 1
export const CHUNK = 1048576
export const CREDIT = 16
const MAX_HEADER = 1048576
const REPEAT_MS = 3000
const RENEW_MS = 10000
const CREDIT_MS = 100
const LINGER_MS = 500
const AT_REST = ["done", "failed", "cancelled", "paused"]

/** An error that the server answered, or `no_server` where it gave no answer. */
export class ServerError extends Error {
  constructor(code, message, detail = "") {
    super(message)
    this.code = code
    this.detail = detail
  }
}

export function hash(bytes) {
  return Buffer.from(blake2b(bytes, {dkLen: 32})).toString("hex")
}

/** The hash and size of a file, read piece by piece. */
export async function fileHash(path) {
  const digest = blake2b.create({dkLen: 32})
  let size = 0
  for await (const piece of createReadStream(path, {highWaterMark: CHUNK})) {
    digest.update(piece)
    size += piece.length
  }
  return {hash: Buffer.from(digest.digest()).toString("hex"), size}
}

/** The keys of a ZPL file: `{"public-key", "secret-key"}`. */
export function readKeys(text) {
  const keys = {}
  let section = ""
  for (const line of text.split(/\r?\n/)) {
    if (!line.trim() || line.trim().startsWith("#")) continue
    if (!/^\s/.test(line)) section = line.trim()
    const found = line.match(/^\s+(public-key|secret-key)\s*=\s*"([^"]{40})"\s*$/)
    if (section === "curve" && found) keys[found[1]] = found[2]
  }
  return keys
}

export function homeFolder() {
  return process.env.REENACT_HOME || join(homedir(), ".reenact")
}

/** The server's endpoint and public key; null while none is known. */
async function findServer(home) {
  if (process.env.REENACT_SERVER) {
    const named = process.env.REENACT_SERVER
    const keys = readKeys(await readFile(join(home, "keys", "remote.key"), "utf8"))
    return {endpoint: named.includes("://") ? named : `tcp://${named}`, key: keys["public-key"]}
  }
  try {
    const {endpoint, key} = JSON.parse(await readFile(join(home, "server.json"), "utf8"))
    return {endpoint, key}
  } catch {
    return null
  }
}

function deferred() {
  let resolve, reject
  const promise = new Promise((...both) => ([resolve, reject] = both))
  promise.catch(() => {}) // whoever awaits it is told
  return {promise, resolve, reject}
}

export const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))

/** One connection, its requests and their answers. Use `Client.open`. */
export class Client {
  #socket = null
  #sending = Promise.resolve()
  #waiting = new Map() // by id: what was asked and is not answered yet
  #timer

  /**
   * @param home the folder with keys and server.json
   * @param repeatMs silence after which a request is sent again
   * @param renewMs silence after which a new socket is opened
   * @param deadlineMs silence after which a request fails
   */
  constructor({home = homeFolder(), repeatMs = REPEAT_MS, renewMs = RENEW_MS, deadlineMs = 60000}) {
    Object.assign(this, {home, repeatMs, renewMs, deadlineMs})
    this.refusedCredit = 0 // how often
  }

  static async open(options = {}) {
    const client = new Client(options)
    await client.connect()
    client.#timer = setInterval(() => client.#look(), client.repeatMs / 4)
    return client
  }

  /** Opens a new socket; what has no answer yet is sent again on it. */
  async connect() {
    this.heard = Date.now()
    const secret = readKeys(await readFile(join(this.home, "keys", "client.key_secret"), "utf8"))
    const server = await findServer(this.home)
    this.#drop()
    if (server === null) return
    const socket = new Dealer({
      linger: 0,
      curveServerKey: server.key,
      curvePublicKey: secret["public-key"],
      curveSecretKey: secret["secret-key"],
    })
    socket.connect(server.endpoint)
    this.endpoint = server.endpoint
    this.#socket = socket
    this.#listen(socket)
    for (const request of this.#waiting.values()) this.#post(request)
  }

  /** Drops everything without a word, as a crash would. */
  crash() {
    clearInterval(this.#timer)
    this.#drop()
  }

  #drop() {
    if (this.#socket) this.#socket.close()
    this.#socket = null
  }

  /** Says goodbye, and frees everything. */
  async close() {
    clearInterval(this.#timer)
    if (this.#socket) {
      this.#socket.linger = LINGER_MS
      await this.#write([header("bye", "bye", {})])
    }
    this.#drop()
  }

  /** Sends a request; resolves to its answer's body, with `chunk` beside it for a download. */
  request(type, body = {}, {chunk = null, id = randomUUID(), holdMs = 0, sends = 1} = {}) {
    const first = header(type, id, body)
    if (first.length > MAX_HEADER) {
      return Promise.reject(new ServerError("too_large", "The request is too large."))
    }
    const request = this.#expect(id, chunk === null ? [first] : [first, chunk], holdMs)
    for (let i = 0; i < sends; i++) this.#post(request)
    return request.promise
  }

  /** Sends frames as they are, which need be no request; resolves as `request`, if `id` has one. */
  sendRaw(frames, id = null) {
    const request = id === null ? null : this.#expect(id, frames, 0)
    this.#write(frames)
    return request?.promise
  }

  #expect(id, frames, holdMs) {
    const now = Date.now()
    const request = {frames, id, holdMs, begun: now, sent: now, ...deferred()}
    this.#waiting.set(id, request)
    return request
  }

  #post(request) {
    request.sent = Date.now()
    this.#write(request.frames)
  }

  #write(frames) {
    const socket = this.#socket
    const send = () => (socket && !socket.closed ? socket.send(frames) : undefined)
    return (this.#sending = this.#sending.then(send).catch(() => {})) // lost: it is repeated
  }

  async #listen(socket) {
    try {
      for await (const [bytes, chunk] of socket) this.#take(bytes, chunk)
    } catch (error) {
      if (!socket.closed) throw error
    }
  }

  #take(bytes, chunk) {
    this.heard = Date.now()
    const {reenact, type, id, body} = JSON.parse(bytes.toString("utf8"))
    if (reenact !== VERSION) return this.#failAll(new ServerError("version", `protocol ${reenact}`))
    const error = type === "error" ? new ServerError(body.code, body.message, body.detail) : null
    if (error && id === "") {
      this.unnamed = error
      // Too many requests, or clients: what has no answer is repeated anyway.
      if (!["rate", "too_many_clients"].includes(error.code)) this.#failAll(error)
      return
    }
    const request = this.#waiting.get(id)
    if (!request) return // answered before
    if (error?.code === "credit") {
      setTimeout(() => this.#waiting.has(id) && this.#post(request), CREDIT_MS)
      this.refusedCredit += 1
      return
    }
    this.#waiting.delete(id)
    if (error) request.reject(error)
    else request.resolve(chunk === undefined ? body : {...body, chunk})
  }

  #failAll(error) {
    for (const request of this.#waiting.values()) request.reject(error)
    this.#waiting.clear()
  }

  async #look() {
    const now = Date.now()
    const late = [...this.#waiting.values()].filter(r => now - r.sent > this.repeatMs + r.holdMs)
    for (const request of late) {
      if (now - request.begun - request.holdMs > this.deadlineMs) {
        this.#waiting.delete(request.id)
        request.reject(new ServerError("no_server", "The server does not answer."))
      } else this.#post(request)
    }
    const silent = [...this.#waiting.values()].some(r => now - r.begun - r.holdMs > this.renewMs)
    if (silent && now - this.heard > this.renewMs) await this.connect().catch(() => {})
  }

  // -- files

  /** Sends a file that the server lacks, and returns it as tasks name it. */
  async upload(path, {onReceived = () => {}} = {}) {
    const file = await fileHash(path)
    const handle = await open(path)
    try {
      for (;;) {
        const [held] = (await this.request("held", {hashes: [file.hash]})).bytes
        if (held === file.size) return file
        await this.#sendFrom(handle, file, held - (held % CHUNK), onReceived)
      }
    } finally {
      await handle.close()
    }
  }

  /** Sends chunks until the file is complete, or until one of them was not accepted. */
  async #sendFrom(handle, file, start, onReceived) {
    const under = new Set()
    let stopped = false
    for (let offset = start; offset < file.size && !stopped; offset += CHUNK) {
      const length = Math.min(CHUNK, file.size - offset)
      const chunk = Buffer.alloc(length)
      await handle.read(chunk, 0, length, offset)
      while (under.size >= CREDIT) await Promise.race(under)
      const answer = this.request("upload", {...file, offset}, {chunk}).then(
        ({received}) => {
          stopped ||= received < offset + length
          onReceived(received)
        },
        error => {
          stopped = true
          throw error
        },
      )
      const settled = answer.finally(() => under.delete(settled))
      settled.catch(() => {})
      under.add(settled)
    }
    await Promise.all(under)
  }

  /** Fetches a file; one that came in part, `path.part`, is continued. */
  async download(file, path) {
    const part = `${path}.part`
    const handle = await open(part, constants.O_RDWR | constants.O_CREAT)
    try {
      const {size} = await handle.stat()
      let next = size - (size % CHUNK)
      const fetchSome = async () => {
        while (next < file.size) {
          const offset = next
          next += CHUNK
          const {chunk} = await this.request("download", {hash: file.hash, offset})
          await handle.write(chunk, 0, chunk.length, offset)
        }
      }
      await Promise.all(Array.from({length: CREDIT}, fetchSome))
    } finally {
      await handle.close()
    }
    if ((await fileHash(part)).hash === file.hash) return rename(part, path)
    await rm(part)
    // If it is damaged there, its job makes it again: then it can be fetched once more.
    const {whole} = await this.request("verify", {hash: file.hash})
    throw new ServerError("corrupt", `${path} arrived damaged.`, `whole on the server: ${whole}`)
  }

  // -- jobs

  /** Yields a job's events after number `after`, until the job is finished or paused. */
  async *events(job, after = 0) {
    for (;;) {
      const wait = 10
      const {events} = await this.request("events", {job, after, wait}, {holdMs: 1000 * wait})
      yield* events
      if (events.length) after = events.at(-1).n
      if (events.length && !events.some(e => e.type === "state" && AT_REST.includes(e.state))) continue
      // An event tells what was; what counts is the state now.
      if (AT_REST.includes((await this.request("status", {job})).state)) return
    }
  }
}

/** A request's first frame. */
export function header(type, id, body) {
  return Buffer.from(JSON.stringify({reenact: VERSION, type, id, body}))
}
