// A whole round with a server: `node round.js TASK.json`. Prints a report as JSON.
//
// TASK.json: {character, track, plate: {NUMBER: path}, plate_name, name, out, large, vectors, largest_frame}

import {mkdir, readFile, rename} from "node:fs/promises"
import {copyFileSync, mkdtempSync, mkdirSync} from "node:fs"
import {tmpdir} from "node:os"
import {join} from "node:path"
import {CHUNK, CREDIT, Client, fileHash, hash, header, homeFolder, sleep} from "./reenact.js"

const given = JSON.parse(await readFile(process.argv[2], "utf8"))
const report = {}

/** The code that a request is refused with, or "answered". */
async function outcome(answer) {
  return answer.then(() => "answered", error => error.code ?? String(error))
}

/** Sends a file on a connection that breaks after two chunks, and the rest on another one. */
async function interrupted() {
  const broken = await Client.open()
  report.hello = await broken.request("hello", {client: "node 1.0", versions: [1]})
  const {hash, size} = await fileHash(given.large)
  const held = async client => (await client.request("held", {hashes: [hash]})).bytes[0]
  report.held = [await held(broken)]
  const bytes = await readFile(given.large)
  for (const offset of [0, CHUNK]) {
    const chunk = bytes.subarray(offset, offset + CHUNK)
    report.held.push((await broken.request("upload", {hash, size, offset}, {chunk})).received)
  }
  broken.crash()
  const client = await Client.open()
  report.held.push(await held(client))
  report.resumed = []
  await client.upload(given.large, {onReceived: received => report.resumed.push(received)})
  report.held.push(await held(client))
  return client
}

async function uploads(client) {
  const files = {character: await client.upload(given.character)}
  files.track = await client.upload(given.track)
  const numbers = Object.keys(given.plate).map(Number)
  const frames = []
  for (const number of numbers) frames.push(await client.upload(given.plate[number]))
  files.plate = {suffix: ".png", numbers, files: frames, name: given.plate_name}
  return files
}

async function render(client, files) {
  const task = {...files, name: given.name}
  const job = await client.request("submit", {kind: "render", task})
  report.missing = job.missing
  report.again = (await client.request("submit", {kind: "render", task})).id === job.id
  report.events = []
  await mkdir(given.out, {recursive: true})
  report.frames = {}
  for await (const event of client.events(job.id)) {
    report.events.push(event)
    if (event.type !== "file" || event.name !== "frame") continue
    const path = join(given.out, `frame.${event.number}.exr`)
    await client.download(event, path)
    report.frames[event.number] = {path, ...(await fileHash(path))}
  }
  report.status = await client.request("status", {job: job.id})
}

/** Sixteen downloads, each sent three times while the server stands still. */
async function repeats(client, file) {
  const {pid} = JSON.parse(await readFile(join(homeFolder(), "server.json"), "utf8"))
  const ask = () => client.request("download", {hash: file.hash, offset: 0}, {sends: 3})
  process.kill(pid, "SIGSTOP")
  const answers = Array.from({length: CREDIT}, () => outcome(ask()))
  await sleep(300)
  process.kill(pid, "SIGCONT")
  report.repeats = await Promise.all(answers)
  report.refusedCredit = client.refusedCredit
  // An id that was answered may be used again.
  await client.request("ping", {}, {id: "same"})
  report.sameId = typeof (await client.request("ping", {}, {id: "same"})).time
}

async function refusals(client, files) {
  const nothing = hash(Buffer.from("nobody has this"))
  const job = report.status.id
  const submit = (task, kind = "render") =>
    outcome(client.request("submit", {kind, task: {...files, ...task}}))
  const ask = (type, body) => outcome(client.request(type, body))
  report.refused = {
    "an unknown file": await ask("download", {hash: nothing, offset: 0}),
    "a name for a hash": await ask("held", {hashes: ["../../etc/passwd"]}),
    "an unknown field": await ask("ping", {colour: 1}),
    "an unknown request": await ask("sing", {}),
    "an unknown job": await ask("status", {job: "000000000000"}),
    "an unknown kind": await submit({}, "paint"),
    "another version": await ask("hello", {client: "node", versions: [7]}),
    "events before the first one": await ask("events", {job, after: -1}),
    "a wait below 0": await ask("events", {job, wait: -1}),
    "a chunk of another length": await outcome(
      client.request("upload", {hash: nothing, size: 5, offset: 0}, {chunk: Buffer.alloc(4)}),
    ),
    "a path and a size": await submit({track: {path: "/a", size: 1}}),
    "a path elsewhere": await submit({track: {path: "/etc/passwd"}}),
    "unknown layers": await submit({layers: "most"}),
    "too much grain": await submit({grain: 1.5}),
    "a movie of no plate": await submit({plate: null, movie: true}),
    "a limit in words": await submit({limits: {lips: "high"}, name: ""}, "qc"),
    "a batch of 0": await submit({batch: 0}),
    "a finish of what is no training": await ask("finish", {job}),
  }
  report.verified = await client.request("verify", {hash: nothing})
  const far = {hash: files.track.hash, offset: 2 ** 53 - 1}
  const past = client.request("download", far)
  report.pastTheEnd = await past.then(({chunk}) => chunk.length, error => error.code)
}

/** What the server can't read: an error without an id, or none at all. */
async function unreadable(client) {
  report.unnamed = {}
  const said = async (name, frames) => {
    do { // what a rate limit drops is sent again
      await sleep(client.unnamed?.code === "rate" ? 500 : 0)
      client.unnamed = null
      client.sendRaw(frames)
      await client.request("ping").catch(() => {})
    } while (client.unnamed?.code === "rate")
    report.unnamed[name] = client.unnamed?.code ?? null
  }
  await said("no JSON", [Buffer.from("{")])
  await said("a bad id", [header("ping", "a b", {})])
  await said("too many parts", [header("ping", "a", {}), Buffer.alloc(1), Buffer.alloc(1)])
  await said("the largest frame", [Buffer.alloc(given.largest_frame, " ")])
  const named = {reenact: 1, type: "ping", id: "more", body: {}, colour: 1}
  const answer = client.sendRaw([Buffer.from(JSON.stringify(named))], "more")
  report.refused["an unknown field of a header"] = await outcome(answer)
  // A larger frame ends the connection; what is asked then goes over the next one.
  client.unnamed = null
  client.sendRaw([Buffer.alloc(given.largest_frame + 1, " ")])
  report.afterTooLarge = [await outcome(client.request("ping")), client.unnamed]
}

async function revoked(client) {
  const keys = join(homeFolder(), "keys", "clients")
  await rename(join(keys, "owner.key"), join(keys, "owner.key.away"))
  await sleep(1200) // it is noticed within a second
  const quick = {deadlineMs: 1200, repeatMs: 400, renewMs: 60000}
  Object.assign(client, quick)
  report.revoked = [await outcome(client.request("ping"))]
  await client.connect()
  report.revoked.push(await outcome(client.request("ping")))
  await rename(join(keys, "owner.key.away"), join(keys, "owner.key"))
  report.revoked.push(await outcome(client.request("ping"))) // the refused socket stays so
  Object.assign(client, {deadlineMs: 30000, renewMs: 1000}) // a new one by itself, after silence
  report.revoked.push(await outcome(client.request("ping")))
}

/** As from another machine: a home with nothing but keys, and the server's by REENACT_SERVER. */
async function fromAfar() {
  const home = mkdtempSync(join(tmpdir(), "reenact-"))
  mkdirSync(join(home, "keys"))
  const keys = join(homeFolder(), "keys")
  copyFileSync(join(keys, "client.key_secret"), join(home, "keys", "client.key_secret"))
  copyFileSync(join(keys, "server.key"), join(home, "keys", "remote.key"))
  process.env.REENACT_SERVER = report.endpoint
  const client = await Client.open({home})
  report.fromAfar = await outcome(client.request("ping"))
  await client.close()
  delete process.env.REENACT_SERVER
}

report.vectors = Object.fromEntries(given.vectors.map(text => [text, hash(Buffer.from(text))]))
const client = await interrupted()
const files = await uploads(client)
report.endpoint = client.endpoint
await render(client, files)
await repeats(client, report.status.files.find(file => file.name === "frame"))
await refusals(client, files)
await unreadable(client)
await revoked(client)
await fromAfar()
report.clients = (await client.request("health")).clients
await client.close()
console.log(JSON.stringify(report))
