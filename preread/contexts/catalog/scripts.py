"""The changes of the Redis catalog that must happen whole, in Lua. All keys share one hash tag, so
that a cluster has them on one node and a script may touch any of them."""

from __future__ import annotations

# KEYS: names, context, bodies, chunks, texts, uses. ARGV: channel, name, expected, version,
# created_at, summary, body, chunk keys, then digest and text of each text.
# -> the newest version if it is not the expected one, else -1.
PUT = """
local newest = tonumber(redis.call('HGET', KEYS[2], 'newest') or '0')
if newest ~= tonumber(ARGV[3]) then return newest end
local version, digests = ARGV[4], {}
for i = 9, #ARGV, 2 do
  if redis.call('HINCRBY', KEYS[6], ARGV[i], 1) == 1 then
    redis.call('HSET', KEYS[5], ARGV[i], ARGV[i + 1])
  end
  digests[#digests + 1] = ARGV[i]
end
redis.call('HSET', KEYS[2], 'newest', version, 'summary:' .. version, ARGV[6],
           'texts:' .. version, table.concat(digests, ' '))
redis.call('HSET', KEYS[3], version, ARGV[7])
redis.call('HSET', KEYS[4], version, ARGV[8])
redis.call('ZADD', KEYS[1], 'GT', ARGV[5], ARGV[2])
redis.call('PUBLISH', ARGV[1], ARGV[2])
return -1
"""

# KEYS: context, bodies, texts. ARGV: version, "" for the newest. -> nothing, or: body, reason of
# the invalidation, then digest and text of each text.
GET = """
local version = ARGV[1]
if version == '' then version = redis.call('HGET', KEYS[1], 'newest') or '' end
local body = redis.call('HGET', KEYS[2], version)
if not body then return {} end
local found = {body, redis.call('HGET', KEYS[1], 'invalidated:' .. version) or ''}
for digest in string.gmatch(redis.call('HGET', KEYS[1], 'texts:' .. version) or '', '%x+') do
  found[#found + 1] = digest
  found[#found + 1] = redis.call('HGET', KEYS[3], digest) or ''
end
return found
"""

# KEYS: context. ARGV: channel, name, reason. -> 1 if there was such a name.
INVALIDATE = """
local newest = redis.call('HGET', KEYS[1], 'newest')
if not newest then return 0 end
redis.call('HSET', KEYS[1], 'invalidated:' .. newest, ARGV[3])
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
"""

# KEYS: names, context, bodies, chunks, texts, uses, sessions. ARGV: channel, name, the version
# below which all go or "", what keys of turns begin with. -> how many versions went.
REMOVE = """
local below, gone, newest = tonumber(ARGV[3]), 0, 0
for _, version in ipairs(redis.call('HKEYS', KEYS[3])) do
  if below and tonumber(version) >= below then
    newest = math.max(newest, tonumber(version))
  else
    gone = gone + 1
    for digest in string.gmatch(redis.call('HGET', KEYS[2], 'texts:' .. version) or '', '%x+') do
      if redis.call('HINCRBY', KEYS[6], digest, -1) <= 0 then
        redis.call('HDEL', KEYS[6], digest)
        redis.call('HDEL', KEYS[5], digest)
      end
    end
    redis.call('HDEL', KEYS[2], 'summary:' .. version, 'texts:' .. version,
               'invalidated:' .. version)
    redis.call('HDEL', KEYS[3], version)
    redis.call('HDEL', KEYS[4], version)
  end
end
if newest == 0 then
  redis.call('DEL', KEYS[2])
  redis.call('ZREM', KEYS[1], ARGV[2])
else
  redis.call('HSET', KEYS[2], 'newest', newest)
end
if not below then
  for _, session in ipairs(redis.call('SMEMBERS', KEYS[7])) do
    redis.call('DEL', ARGV[4] .. session)
  end
  redis.call('DEL', KEYS[7])
end
redis.call('PUBLISH', ARGV[1], ARGV[2])
return gone
"""

# KEYS: context, turns, sessions. ARGV: session, at, turn. -> turns there are if not `at`, -1 if the
# context is gone, else -2.
APPEND = """
if not redis.call('HGET', KEYS[1], 'newest') then return -1 end
local turns = redis.call('LLEN', KEYS[2])
if turns ~= tonumber(ARGV[2]) then return turns end
redis.call('RPUSH', KEYS[2], ARGV[3])
redis.call('SADD', KEYS[3], ARGV[1])
return -2
"""

# KEYS: epochs. ARGV: channel, scope. -> the new epoch.
BUMP = """
local epoch = redis.call('HINCRBY', KEYS[1], ARGV[2], 1)
redis.call('PUBLISH', ARGV[1], ARGV[2])
return epoch
"""
